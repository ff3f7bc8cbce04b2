"""Redux Visual Prompt: the photo itself as the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..colorflux_core.errors import ColorFluxError
from ..colorflux_core.model.settings import Settings
from .layout import Conditioning, each_frame, from_image, to_image
from .schema import schema, tooltip

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel
    from comfy.sd import StyleModel

EACH, SHARED = "one prompt each", "one shared prompt"
POOLED_WIDTH = 768  # CLIP-L's width; smaller models read only the first channels.


class ReduxVisualPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ColorFlux_ReduxVisualPrompt",
            display_name="Redux Visual Prompt",
            description="Describes the photo to the model with a picture instead of words.",
            search_aliases=["redux", "style model", "image prompt"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="SigLIP, or the bundle's own."),
                io.StyleModel.Input("style_model", tooltip="Redux, or the bundle's own."),
                io.Image.Input("image", tooltip="The gray photo."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Weight of the visual prompt; 0 disables it.",
                ),
                io.Combo.Input(
                    "frames",
                    options=[EACH, SHARED],
                    default=EACH,
                    tooltip="In a batch: one prompt per photo, or the mean of all, which keeps "
                    "the colors of a film steady.",
                ),
                io.Int.Input(
                    "text_tokens",
                    default=-1,
                    min=-1,
                    max=4096,
                    tooltip=f"{tooltip(Settings, 'text_tokens')} -1: the bundle's number, or "
                    f"{Settings.text_tokens} for other weights.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="A color picture to take the colors from.",
                ),
                io.Float.Input(
                    "blend",
                    optional=True,
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Weight of the reference in the prompt; the rest is the photo's.",
                ),
                io.Conditioning.Input(
                    "text",
                    optional=True,
                    tooltip="Text prompt before the visual prompt, in place of the empty tokens.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="For Apply Grayscale ControlNet."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        clip_vision: ClipVisionModel,
        style_model: StyleModel,
        image: Tensor,
        strength: float,
        frames: str,
        text_tokens: int,
        reference: Tensor | None = None,
        blend: float = 1.0,
        text: Conditioning | None = None,
    ) -> io.NodeOutput:
        from ..colorflux_core.model.visual_prompt import after_text_tokens

        c_v = _visual_prompts(clip_vision, style_model, image, "image")
        if reference is not None:
            others = _visual_prompts(clip_vision, style_model, reference, "reference")
            if len(others) not in (1, len(c_v)):
                raise ColorFluxError(
                    f"Redux Visual Prompt: reference has {len(others)} pictures for {len(c_v)} "
                    "photos: connect one, or one for each."
                )
            c_v = c_v.lerp(others.expand_as(c_v), blend)
        if frames == SHARED:
            c_v = c_v.mean(dim=0, keepdim=True)
        # At strength 0 the prompt is omitted, which differs from a prompt of zeros.
        c_v = c_v * strength if strength else c_v[:, :0]
        if text is not None:
            return io.NodeOutput([(_after_text(c_v, *item), item[1]) for item in text])
        if text_tokens < 0:
            text_tokens = getattr(style_model, "text_tokens", Settings.text_tokens)
        text_tokens = max(text_tokens, 1 - c_v.shape[1])  # ComfyUI's blocks need at least 1 token.
        pooled = {"pooled_output": torch.zeros(1, POOLED_WIDTH)}
        return io.NodeOutput([(after_text_tokens(c_v, text_tokens), pooled)])


def _visual_prompts(
    clip_vision: ClipVisionModel, style_model: StyleModel, image: Tensor, name: str
) -> Tensor:
    """c_v (B, T, D) of each picture, D being the width of FLUX's text tokens."""
    photos = from_image(image, f"Redux Visual Prompt: {name}")
    redux = getattr(getattr(style_model, "model", None), "redux_up", None)
    if redux is None:
        raise ColorFluxError(
            "Redux Visual Prompt: style_model is not Redux: connect flux1-redux-dev, or the "
            "bundle's."
        )

    def prompt(photo: Tensor) -> Tensor:
        encoded = clip_vision.encode_image(to_image(photo), crop=False)
        width = encoded.last_hidden_state.shape[-1]
        if width != redux.in_features:
            raise ColorFluxError(
                f"Redux Visual Prompt: clip_vision sees {width} features and style_model reads "
                f"{redux.in_features}: connect sigclip_vision_patch14_384 to FLUX.1's Redux, or "
                "both of one bundle."
            )
        return style_model.get_cond(encoded)

    return each_frame(prompt, photos)


def _after_text(c_v: Tensor, text: Tensor, extras: dict[str, Any]) -> Tensor:
    """Text tokens (B, N, D) followed by c_v (B, T, D). Raises ColorFluxError if they do not fit."""
    if text.shape[-1] != c_v.shape[-1]:
        raise ColorFluxError(
            f"Redux Visual Prompt: text is {text.shape[-1]} wide and the visual prompt "
            f"{c_v.shape[-1]}: connect a text that FLUX.1's own encoders made."
        )
    if "attention_mask" in extras:
        raise ColorFluxError(
            "Redux Visual Prompt: text carries an attention mask (Apply Style Model with "
            "attn_bias): connect the text before that node."
        )
    batch = max(len(text), len(c_v))
    if not {len(text), len(c_v)} <= {1, batch}:
        raise ColorFluxError(
            f"Redux Visual Prompt: text has {len(text)} prompts for {len(c_v)} photos: connect "
            "one, or one for each."
        )
    return torch.cat([rows.expand(batch, -1, -1) for rows in (text, c_v)], dim=1)
