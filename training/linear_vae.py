"""The autoencoder that nano's starts from: the best linear one, in closed form, in FLUX's class.

An 8 x 8 patch is 192 numbers. Its 16 latents are the leading principal components of the patch's
luma and of its chroma: so the gray photo's latents are the color photo's without the chroma ones.
Whitened, all have unit variance; less so, fine detail has less of it, and less of the flow's loss.
The weights below make AutoencoderKL's encoder compute exactly this, and its decoder paint every
patch with its mean color; the residual blocks start as the identity.

A norm followed by SiLU passes a value x through as silu(x) - silu(-x) = x, if constant channels of
size ANCHOR beside x keep the norm's divisor constant.
"""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from colorflux_core.color import rgb_to_ycbcr

CHANNELS = (32, 64, 96, 128)
GROUPS = 4
LATENTS, LUMA_LATENTS = 16, 10
PATCH = 8
ANCHOR = 50.0
NO_NOISE = -30.0


def build_vae(images: Tensor, whitening: float = 1.0, chroma_scale: float = 1.0) -> AutoencoderKL:
    """The linear autoencoder of ``images`` (N, 3, H, W) in [0, 1], sides multiples of 8."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=CHANNELS,
        norm_num_groups=GROUPS,
        layers_per_block=1,
        latent_channels=LATENTS,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    mean, analysis = principal_components(images, whitening, chroma_scale)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, ResnetBlock2D):
                module.conv2.weight.zero_()
                module.conv2.bias.zero_()
            if isinstance(module, Attention):
                module.to_out[0].weight.zero_()
                module.to_out[0].bias.zero_()
        set_encoder(vae.encoder, mean, analysis)
        set_decoder(vae.decoder, mean, analysis)
    return vae


def principal_components(
    images: Tensor, whitening: float = 1.0, chroma_scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The mean patch (3, 8, 8) and the analysis filters (16, 3, 8, 8), on RGB in [-1, 1].

    The first LUMA_LATENTS filters see luma alone, the others chroma alone. The first component of
    luma has a standard deviation of 1, that of chroma ``chroma_scale``; ``whitening`` 1 gives the
    others the same, 0 the share of it that they have in the photos.
    """
    patches = (
        rgb_to_ycbcr(images * 2 - 1)
        .unfold(2, PATCH, PATCH)
        .unfold(3, PATCH, PATCH)
        .permute(0, 2, 3, 1, 4, 5)
        .flatten(0, 2)
    )
    to_ycbcr = rgb_to_ycbcr(torch.eye(3).view(3, 3, 1, 1)).view(3, 3).T
    centred = (patches - patches.mean(0)).double()
    filters = []
    for planes, count, scale in (
        ([0], LUMA_LATENTS, 1.0),
        ([1, 2], LATENTS - LUMA_LATENTS, chroma_scale),
    ):
        flat = centred[:, planes].flatten(1)
        variances, axes = torch.linalg.eigh(flat.T @ flat / len(flat))
        deviations = variances[-1] ** (1 - whitening) * variances**whitening
        scaled = scale * (axes / deviations.sqrt()).T.flip(0)[:count]
        ycbcr = torch.zeros(count, 3, PATCH, PATCH, dtype=torch.double)
        ycbcr[:, planes] = scaled.view(count, len(planes), PATCH, PATCH)
        filters.append(ycbcr)
    analysis = torch.einsum("kphw,pc->kchw", torch.cat(filters), to_ycbcr.double()).float()
    mean = torch.linalg.solve(to_ycbcr, patches.mean(0).flatten(1)).view(3, PATCH, PATCH)
    return mean, analysis


def set_encoder(encoder: Encoder, mean: Tensor, analysis: Tensor) -> None:
    """Two stride-2 convolutions gather 4 x 4 pixels, the third applies the filters to 8 x 8."""
    passing(encoder.conv_in)
    for level in (0, 1):
        gathering(encoder.down_blocks[level].downsamplers[0].conv, 3 * 4**level)
    passing(encoder.down_blocks[1].resnets[0].conv_shortcut)
    passing(encoder.down_blocks[2].resnets[0].conv_shortcut)

    project = encoder.down_blocks[2].downsamplers[0].conv
    project.weight.zero_()
    project.bias.zero_()
    bits = analysis.view(LATENTS, 3, 2, 2, 2, 2, 2, 2)  # y and x of the patch, coarse bit first
    gathered = bits.permute(0, 3, 6, 4, 7, 1, 2, 5).reshape(LATENTS, 48, 2, 2)
    project.weight[:LATENTS, :48, :2, :2] = gathered
    project.bias[:LATENTS] = -torch.einsum("kchw,chw->k", analysis, mean)

    paired, scale = anchored(encoder.down_blocks[3].resnets[0].conv_shortcut, LATENTS)
    encoder.conv_out.weight.zero_()
    encoder.conv_out.bias.zero_()
    encoder.conv_out.bias[LATENTS:] = NO_NOISE
    for latent, (plus, minus) in enumerate(paired):
        encoder.conv_out.weight[latent, plus, 1, 1] = scale
        encoder.conv_out.weight[latent, minus, 1, 1] = -scale


def set_decoder(decoder: Decoder, mean: Tensor, analysis: Tensor) -> None:
    """Copy the latents up to full size, and there turn them into their patch's mean color."""
    synthesis = torch.linalg.pinv(analysis.flatten(1)).T.view_as(analysis)
    passing(decoder.conv_in)
    for block in decoder.up_blocks:
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None and shortcut.out_channels > CHANNELS[0]:
            passing(shortcut)
        if block.upsamplers is not None:
            passing(block.upsamplers[0].conv)
    to_color = decoder.up_blocks[3].resnets[0].conv_shortcut
    paired, scale = anchored(to_color, 3, synthesis.mean(dim=(2, 3)).T)
    decoder.conv_out.weight.zero_()
    decoder.conv_out.bias.copy_(mean.mean(dim=(1, 2)))
    for color, (plus, minus) in enumerate(paired):
        decoder.conv_out.weight[color, plus, 1, 1] = scale
        decoder.conv_out.weight[color, minus, 1, 1] = -scale


def passing(conv: nn.Conv2d) -> None:
    """Copy the first channels, as many as there are on both sides; leave the others as they are."""
    kept = min(conv.in_channels, conv.out_channels, LATENTS * 3)
    middle = conv.kernel_size[0] // 2
    weight, bias = conv.parameters()
    weight[:kept] = 0
    bias[:kept] = 0
    weight[range(kept), range(kept), middle, middle] = 1


def gathering(conv: nn.Conv2d, channels: int) -> None:
    """Stack the ``channels`` first channels of each 2 x 2 block."""
    weight, bias = conv.parameters()
    weight[: 4 * channels] = 0
    bias[: 4 * channels] = 0
    for offset in range(4):
        for channel in range(channels):
            weight[offset * channels + channel, channel, offset // 2, offset % 2] = 1


def anchored(
    conv: nn.Conv2d, values: int, mixing: Tensor | None = None
) -> tuple[list[tuple[int, int]], float]:
    """Make a 1 x 1 convolution give +x and -x for each value x, among constant channels.

    ``mixing`` (values, in) says what the values are; the first input channels by default. Returns
    each value's two channels, and what a norm over GROUPS groups divides by.
    """
    size = conv.out_channels // GROUPS
    per_group = math.ceil(values / GROUPS)
    mixing = torch.eye(values) if mixing is None else mixing
    weight, bias = conv.parameters()
    weight.zero_()
    signs = torch.tensor([1.0, -1.0]).repeat(conv.out_channels // 2)
    bias.copy_(ANCHOR * signs)
    paired = []
    for value in range(values):
        plus = value // per_group * size + 2 * (value % per_group)
        weight[plus, : mixing.shape[1], 0, 0] = mixing[value]
        weight[plus + 1, : mixing.shape[1], 0, 0] = -mixing[value]
        bias[plus : plus + 2] = 0
        paired.append((plus, plus + 1))
    return paired, ANCHOR * math.sqrt(1 - 2 * per_group / size)
