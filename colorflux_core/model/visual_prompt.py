"""The visual prompt c_v = Redux(SigLIP(image)), which replaces a text prompt (paper 4.1.2)."""

from __future__ import annotations

import torch
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor


def preprocess(image_processor: BaseImageProcessor, rgb: Tensor) -> Tensor:
    """Normalized pixels (B, 3, S, S) for the vision tower, from ``rgb`` (B, 3, H, W) in [0, 1].

    SigLIP resizes the picture to a square without cropping. The picture is converted to 8 bits,
    since the processor would rescale floats a second time.
    """
    images = (rgb.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    return image_processor.preprocess(
        images=list(images), return_tensors="pt", input_data_format="channels_last"
    )["pixel_values"]


def image_tokens(
    image_encoder: PreTrainedModel, image_processor: BaseImageProcessor, rgb: Tensor
) -> Tensor:
    """The vision tower's last hidden state (B, tokens, D) for ``rgb`` (B, 3, H, W) in [0, 1]."""
    parameter = next(image_encoder.parameters())
    pixels = preprocess(image_processor, rgb).to(parameter.device, parameter.dtype)
    return image_encoder(pixel_values=pixels).last_hidden_state


def visual_prompt(
    image_encoder: PreTrainedModel,
    image_processor: BaseImageProcessor,
    redux: ReduxImageEncoder,
    rgb: Tensor,
) -> Tensor:
    """c_v (B, tokens, width of the transformer's context) for ``rgb`` (B, 3, H, W) in [0, 1]."""
    return prompt_from_tokens(redux, image_tokens(image_encoder, image_processor, rgb))


def prompt_from_tokens(redux: ReduxImageEncoder, tokens: Tensor) -> Tensor:
    """c_v (B, tokens, width of the transformer's context) from image tokens (B, tokens, D)."""
    return redux(tokens.to(redux.dtype)).image_embeds


def after_text_tokens(prompt: Tensor, text_tokens: int) -> Tensor:
    """The prompt (B, T, D) after ``text_tokens`` zero tokens, as in diffusers without a text."""
    text = prompt.new_zeros(prompt.shape[0], text_tokens, prompt.shape[2])
    return torch.cat([text, prompt], dim=1)
