"""The initial weights of nano's autoencoder: a PCA autoencoder in closed form, as an AutoencoderKL.

An 8 x 8 RGB patch has 192 values. Its 16 latents are the leading principal components of the
patch's luma and of its chroma, scaled to unit variance. A gray photo thus has the same luma latents
as the color photo. With the weights set here, AutoencoderKL's encoder computes exactly these
latents, and its decoder fills every patch with its mean color; residual blocks start as identities.

A value x passes unchanged through a norm followed by SiLU as silu(x) - silu(-x) = x, if constant
channels of magnitude ANCHOR in the same group keep the norm's divisor constant.
"""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from colorflux_core.photos.color import rgb_to_ycbcr

CHANNELS = (32, 64, 96, 128)
GROUPS = 4
LATENTS, LUMA_LATENTS = 16, 10
PATCH = 8
ANCHOR = 50.0
"""Magnitude of the constant channels, large compared with the values that pass through."""
MIN_LOG_VARIANCE = -30.0
"""Log variance of the encoder's posterior: no noise."""


def build_vae(images: Tensor) -> AutoencoderKL:
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
    mean, analysis = principal_components(images)
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


def principal_components(images: Tensor) -> tuple[Tensor, Tensor]:
    """The mean patch (3, 8, 8) and the analysis filters (16, 3, 8, 8), on RGB in [-1, 1].

    The first LUMA_LATENTS filters depend on luma only, the others on chroma only.
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
    for planes, count in (([0], LUMA_LATENTS), ([1, 2], LATENTS - LUMA_LATENTS)):
        flat = centred[:, planes].flatten(1)
        variances, axes = torch.linalg.eigh(flat.T @ flat / len(flat))
        whitened = (axes / variances.sqrt()).T.flip(0)[:count]
        ycbcr = torch.zeros(count, 3, PATCH, PATCH, dtype=torch.double)
        ycbcr[:, planes] = whitened.view(count, len(planes), PATCH, PATCH)
        filters.append(ycbcr)
    analysis = torch.einsum("kphw,pc->kchw", torch.cat(filters), to_ycbcr.double()).float()
    mean = torch.linalg.solve(to_ycbcr, patches.mean(0).flatten(1)).view(3, PATCH, PATCH)
    return mean, analysis


def set_encoder(encoder: Encoder, mean: Tensor, analysis: Tensor) -> None:
    """Two stride-2 convolutions stack 4 x 4 pixels in channels; the third applies the filters."""
    set_identity(encoder.conv_in)
    for level in (0, 1):
        set_space_to_depth(encoder.down_blocks[level].downsamplers[0].conv, 3 * 4**level)
    set_identity(encoder.down_blocks[1].resnets[0].conv_shortcut)
    set_identity(encoder.down_blocks[2].resnets[0].conv_shortcut)

    project = encoder.down_blocks[2].downsamplers[0].conv
    project.weight.zero_()
    project.bias.zero_()
    bits = analysis.view(LATENTS, 3, 2, 2, 2, 2, 2, 2)  # y and x of the patch, coarse bit first
    gathered = bits.permute(0, 3, 6, 4, 7, 1, 2, 5).reshape(LATENTS, 48, 2, 2)
    project.weight[:LATENTS, :48, :2, :2] = gathered
    project.bias[:LATENTS] = -torch.einsum("kchw,chw->k", analysis, mean)

    paired, scale = set_signed_pairs(encoder.down_blocks[3].resnets[0].conv_shortcut, LATENTS)
    encoder.conv_out.weight.zero_()
    encoder.conv_out.bias.zero_()
    encoder.conv_out.bias[LATENTS:] = MIN_LOG_VARIANCE
    for latent, (plus, minus) in enumerate(paired):
        encoder.conv_out.weight[latent, plus, 1, 1] = scale
        encoder.conv_out.weight[latent, minus, 1, 1] = -scale


def set_decoder(decoder: Decoder, mean: Tensor, analysis: Tensor) -> None:
    """Copy the latents up to full size and convert them to their patch's mean color there."""
    synthesis = torch.linalg.pinv(analysis.flatten(1)).T.view_as(analysis)
    set_identity(decoder.conv_in)
    for block in decoder.up_blocks:
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None and shortcut.out_channels > CHANNELS[0]:
            set_identity(shortcut)
        if block.upsamplers is not None:
            set_identity(block.upsamplers[0].conv)
    to_color = decoder.up_blocks[3].resnets[0].conv_shortcut
    paired, scale = set_signed_pairs(to_color, 3, synthesis.mean(dim=(2, 3)).T)
    decoder.conv_out.weight.zero_()
    decoder.conv_out.bias.copy_(mean.mean(dim=(1, 2)))
    for color, (plus, minus) in enumerate(paired):
        decoder.conv_out.weight[color, plus, 1, 1] = scale
        decoder.conv_out.weight[color, minus, 1, 1] = -scale


def set_identity(conv: nn.Conv2d) -> None:
    """Let a convolution copy its first channels, as many as fit; other channels are unchanged."""
    kept = min(conv.in_channels, conv.out_channels, LATENTS * 3)
    middle = conv.kernel_size[0] // 2
    weight, bias = conv.parameters()
    weight[:kept] = 0
    bias[:kept] = 0
    weight[range(kept), range(kept), middle, middle] = 1


def set_space_to_depth(conv: nn.Conv2d, channels: int) -> None:
    """Let a stride-2 convolution stack the first ``channels`` channels of each 2 x 2 block."""
    weight, bias = conv.parameters()
    weight[: 4 * channels] = 0
    bias[: 4 * channels] = 0
    for offset in range(4):
        for channel in range(channels):
            weight[offset * channels + channel, channel, offset // 2, offset % 2] = 1


def set_signed_pairs(
    conv: nn.Conv2d, values: int, mixing: Tensor | None = None
) -> tuple[list[tuple[int, int]], float]:
    """Let a 1 x 1 convolution output +x and -x for each value x, and constant other channels.

    Args:
        conv: The convolution to set.
        values: Number of values.
        mixing: The values as combinations (values, in) of input channels; by default the first
            input channels.

    Returns:
        Each value's two output channels, and the divisor of a norm over GROUPS groups.
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
