"""Adapts a bundle's vision tower to the interface of ComfyUI's CLIP_VISION."""

from __future__ import annotations

import comfy.clip_vision
import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..colorflux_core.model.visual_prompt import image_tokens


class VisionTower(nn.Module):
    """A wrapper, because ModelPatcher sets ``model.device``, which is read-only in transformers."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder


class BundleClipVision:
    """SigLIP or nano's tower, with the preprocessing it was trained with.

    Its output has only what Redux reads: ``last_hidden_state`` (B, tokens, D).
    """

    def __init__(self, encoder: PreTrainedModel, image_processor: BaseImageProcessor) -> None:
        self.image_processor = image_processor
        self.load_device = mm.text_encoder_device()
        self.model = VisionTower(encoder)
        self.patcher = ModelPatcher(self.model, self.load_device, mm.text_encoder_offload_device())

    def encode_image(self, image: Tensor, crop: bool = True) -> comfy.clip_vision.Output:
        """The image tokens of an IMAGE (B, H, W, C), or of its central square if ``crop``."""
        rgb = image[..., :3].movedim(-1, 1)
        if crop:
            side = min(rgb.shape[-2:])
            top, left = ((n - side) // 2 for n in rgb.shape[-2:])
            rgb = rgb[..., top : top + side, left : left + side]
        mm.load_models_gpu([self.patcher], force_full_load=True)
        with torch.no_grad():
            tokens = image_tokens(self.model.encoder, self.image_processor, rgb)
        output = comfy.clip_vision.Output()
        output["last_hidden_state"] = tokens.to(mm.intermediate_device())
        return output
