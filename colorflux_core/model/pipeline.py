"""ColorFLUX as a diffusers pipeline: a gray photo in, the same photo in color out.

Paper 5.1, Inference: the ControlNet and the visual prompt both get the gray photo; eight Euler
steps turn noise into color.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import FluxLoraLoaderMixin
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import SiglipVisionModel
from transformers.image_processing_utils import BaseImageProcessor

from ..errors import ColorFluxError
from ..lite_vision import LiteVisionModel
from ..photos.color import grayscale
from .flow import set_timesteps
from .latents import decode, encode, pack, unpack
from .settings import UNION_GRAY_MODE, Settings
from .velocity import Conditions, control_residuals, predict_velocity
from .visual_prompt import after_text_tokens, visual_prompt

Pictures = Image.Image | list[Image.Image] | Tensor
"""One or more pictures of one size: PIL, or a float tensor (B, 3, H, W) in [0, 1]."""

StepCallback = Callable[[DiffusionPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
"""diffusers' ``callback_on_step_end``: the tensors it returns replace those of the same name."""


class ColorFluxPipeline(DiffusionPipeline, FluxLoraLoaderMixin):
    """FLUX.1 with a gray ControlNet, a Redux visual prompt and optionally the Pro-DPO LoRA.

    Without the LoRA this is diffusers' ``FluxPriorReduxPipeline`` followed by its
    ``FluxControlNetPipeline``, except that the condition is the mode of the VAE's posterior instead
    of a sample.
    """

    # Without the ControlNet, which alternates with the transformer at every step.
    model_cpu_offload_seq = "image_encoder->image_embedder->transformer->vae"
    _callback_tensor_inputs = ("latents", "prompt_embeds", "control_latents")
    text_encoder = None  # FluxLoraLoaderMixin reads it.
    _interrupt = False

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        vae: AutoencoderKL,
        controlnet: FluxControlNetModel,
        image_encoder: SiglipVisionModel | LiteVisionModel,
        image_embedder: ReduxImageEncoder,
        feature_extractor: BaseImageProcessor,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            controlnet=controlnet,
            image_encoder=image_encoder,
            image_embedder=image_embedder,
            feature_extractor=feature_extractor,
            scheduler=scheduler,
        )

    @property
    def interrupt(self) -> bool:
        """Whether to stop; set ``_interrupt`` in a callback, as in diffusers' own pipelines."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        photo: Pictures,
        *,
        reference: Pictures | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        num_inference_steps: int = Settings.steps,
        guidance_scale: float = Settings.guidance,
        controlnet_conditioning_scale: float = Settings.control_scale,
        control_guidance_start: float = Settings.control_start,
        control_guidance_end: float = Settings.control_end,
        control_mode: int | None = Settings.control_mode,
        lora_scale: float = Settings.lora_scale,
        text_tokens: int = Settings.text_tokens,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Colorize photos that are already at canvas size.

        Args:
            photo: The photos; both sides multiples of 16. Only their BT.601 luma is used.
            reference: Color pictures of any size for the visual prompt, instead of the photos.
            prompt_embeds: Text tokens (B or 1, T, D) before the visual prompt, instead of zeros.
            pooled_prompt_embeds: The text's pooled vector (B or 1, P), instead of zeros.
            num_inference_steps: Number of Euler steps.
            guidance_scale: Guidance of guidance-distilled models (``guidance_embeds``).
            controlnet_conditioning_scale: Strength of the ControlNet; 0 does not run it.
            control_guidance_start: Fraction of the steps at which the ControlNet starts.
            control_guidance_end: Fraction of the steps at which the ControlNet stops.
            control_mode: Index of the condition; only for union ControlNets, which require it.
            lora_scale: Strength of the loaded LoRA.
            text_tokens: Number of zero tokens before the visual prompt if no text is given.
            generator: Draws the noise. CPU generators give the same noise on all devices.
            latents: Packed noise (B, H/16 * W/16, 64), instead of drawing it.
            output_type: "pt" (float32 (B, 3, H, W) in [0, 1]), "np", "pil", or "latent" (packed).
            return_dict: Whether to return an output object or a tuple.
            callback_on_step_end: Called after each step with the tensors named below.
            callback_on_step_end_tensor_inputs: Any of latents, prompt_embeds, control_latents.

        Returns:
            A ``FluxPipelineOutput`` with the pictures as ``images``, or a tuple of the pictures.

        Raises:
            ColorFluxError: for pictures, settings or a ControlNet that cannot be used.
        """
        # Check the arguments. Settings checks its own ranges.
        settings = Settings(
            steps=num_inference_steps,
            guidance=guidance_scale,
            control_scale=controlnet_conditioning_scale,
            control_start=control_guidance_start,
            control_end=control_guidance_end,
            control_mode=control_mode,
            lora_scale=lora_scale,
            text_tokens=text_tokens,
        )
        self._check(settings, output_type, callback_on_step_end_tensor_inputs)
        self._interrupt = False
        device, dtype = self._execution_device, self.transformer.dtype

        # The condition: packed latents of the gray photo.
        gray = grayscale(_as_tensor("photo", photo)).to(device)
        batch = len(gray)
        z_gray = encode(self.vae, gray).to(dtype)
        latent_size = (z_gray.shape[-2], z_gray.shape[-1])
        c_gray = pack(z_gray)

        # The prompt: text tokens, then the visual prompt.
        pictures = gray if reference is None else _as_tensor("reference", reference)
        prompt = self._prompt(pictures, prompt_embeds, text_tokens, batch)
        pooled = pooled_prompt_embeds
        if pooled is not None:
            width = self.transformer.config.pooled_projection_dim
            pooled = _expanded("pooled_prompt_embeds", pooled.to(prompt), (batch, width))
        mode = None
        if control_mode is not None:
            mode = torch.full((batch, 1), control_mode, device=device)

        # The noise to start from, and the timesteps.
        if latents is None:
            latents = pack(randn_tensor(z_gray.shape, generator, device, torch.float32))
        x_t = _expanded("latents", latents.to(device, torch.float32), c_gray.shape)
        timesteps = set_timesteps(self.scheduler, num_inference_steps, x_t.shape[1], device)

        # The Euler steps, with the ControlNet in some of them.
        scale_lora_layers(self.transformer, lora_scale)
        try:
            with self.progress_bar(total=num_inference_steps) as progress:
                for step, timestep in enumerate(timesteps):
                    if self.interrupt:
                        break
                    x, t = x_t.to(dtype), (timestep / 1000).expand(batch)
                    conditions = Conditions(prompt, latent_size, guidance_scale, pooled)
                    residuals = None
                    if settings.control_applies(step):
                        scale = controlnet_conditioning_scale
                        residuals = control_residuals(
                            self.controlnet, x, t, c_gray, conditions, scale, mode
                        )
                    v = predict_velocity(self.transformer, x, t, conditions, residuals)
                    x_t = self.scheduler.step(v.float(), timestep, x_t, return_dict=False)[0]
                    if callback_on_step_end is not None:
                        tensors = dict(latents=x_t, prompt_embeds=prompt, control_latents=c_gray)
                        asked = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                        tensors |= callback_on_step_end(self, step, timestep, asked)
                        x_t, prompt = tensors["latents"], tensors["prompt_embeds"]
                        c_gray = tensors["control_latents"]
                    progress.update()
        finally:
            unscale_lora_layers(self.transformer, lora_scale)

        # Decode.
        images: Any = x_t
        if output_type != "latent":
            rgb = decode(self.vae, unpack(x_t, *latent_size))
            images = VaeImageProcessor().postprocess(rgb, output_type, [False] * batch)
        self.maybe_free_model_hooks()
        return FluxPipelineOutput(images=images) if return_dict else (images,)

    def _prompt(
        self, pictures: Tensor, text: Tensor | None, text_tokens: int, batch: int
    ) -> Tensor:
        """The text tokens, or zeros, followed by c_v of the pictures: (B, T, D)."""
        if len(pictures) not in (1, batch):
            raise ColorFluxError(
                f"There are {len(pictures)} references for {batch} photos: give one, or one each."
            )
        encoder, redux = self.image_encoder, self.image_embedder
        c_v = visual_prompt(encoder, self.feature_extractor, redux, pictures)
        c_v = c_v.to(self._execution_device, self.transformer.dtype).expand(batch, -1, -1)
        if text is None:
            return after_text_tokens(c_v, text_tokens)
        text = _expanded("prompt_embeds", text.to(c_v), (batch, -1, c_v.shape[-1]))
        return torch.cat([text, c_v], dim=1)

    def _check(self, settings: Settings, output_type: str, tensor_inputs: Sequence[str]) -> None:
        """Reject settings that the parts do not support, before any of them runs."""
        mode, modes = settings.control_mode, self.controlnet.config.num_mode
        if self.controlnet.input_hint_block is not None:
            raise ColorFluxError(
                "This ControlNet was made for pixels (XLabs), not for latents: "
                "choose one in the style of InstantX or ColorFLUX."
            )
        if modes is None and mode is not None:
            raise ColorFluxError(
                f"control_mode is {mode}, but this is not a union ControlNet: leave it out."
            )
        if modes is not None and mode not in range(modes):
            raise ColorFluxError(
                f"This union ControlNet needs a control_mode from 0 to {modes - 1}, not {mode}: "
                f"set {UNION_GRAY_MODE}, which is gray."
            )
        for name, values, allowed in (
            ("output_type", [output_type], _OUTPUT_TYPES),
            ("callback_on_step_end_tensor_inputs", tensor_inputs, self._callback_tensor_inputs),
        ):
            for value in values:
                if value not in allowed:
                    raise ColorFluxError(
                        f"{name} is {value!r}: it must be one of {', '.join(allowed)}."
                    )


_OUTPUT_TYPES = ("pt", "np", "pil", "latent")


def _as_tensor(name: str, pictures: Pictures) -> Tensor:
    """(B, 3, H, W) in [0, 1]."""
    if not isinstance(pictures, Tensor):
        images = [pictures] if isinstance(pictures, Image.Image) else pictures
        if len({image.size for image in images}) != 1:
            raise ColorFluxError(f"{name}: all pictures of a call must have the same size.")
        rgb = [image.convert("RGB") for image in images]
        return VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(rgb))
    if not pictures.is_floating_point() or pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ColorFluxError(
            f"{name} must be a float tensor (B, 3, H, W), not {pictures.dtype} of shape "
            f"{tuple(pictures.shape)}."
        )
    low, high = pictures.aminmax()
    if not 0 <= low <= high <= 1:
        raise ColorFluxError(f"{name} must be in [0, 1], not in [{low:.3g}, {high:.3g}].")
    return pictures.float()


def _expanded(name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Expand one row for all photos to a row per photo; -1 in ``shape`` keeps a length."""
    try:
        return tensor.expand(*shape)
    except RuntimeError as error:
        raise ColorFluxError(
            f"{name} has shape {tuple(tensor.shape)}; expected {tuple(shape)}, or one row of it."
        ) from error
