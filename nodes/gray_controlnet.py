"""Apply Grayscale ControlNet: keeps the gray photo's structure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nodes  # ComfyUI's own module, not this package.
import torch
from comfy_api.latest import io
from torch import Tensor

from ..colorflux_core.errors import ColorFluxError
from ..colorflux_core.model.settings import UNION_GRAY_MODE, UNION_MODES, Settings
from ..colorflux_core.photos.color import grayscale
from .layout import Conditioning, from_image, in_range, to_image
from .schema import from_setting, schema

if TYPE_CHECKING:
    from comfy.controlnet import ControlBase
    from comfy.sd import VAE

AUTO = "auto"


class ApplyGrayControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ColorFlux_ApplyGrayControlNet",
            display_name="Apply Grayscale ControlNet",
            description="Keeps the structure of the gray photo while FLUX adds color.",
            search_aliases=["controlnet", "gray", "structure"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="From Redux Visual Prompt."),
                io.ControlNet.Input(
                    "control_net", tooltip="A gray ControlNet, or a union one, for FLUX.1."
                ),
                io.Image.Input("image", tooltip="The gray photo at canvas size."),
                io.Vae.Input("vae", tooltip="FLUX.1's, or the bundle's."),
                io.Float.Input(
                    "strength",
                    **from_setting(Settings, "control_scale", max=10.0, step=0.05),
                ),
                io.Float.Input(
                    "start_percent",
                    **from_setting(Settings, "control_start", step=0.01),
                ),
                io.Float.Input(
                    "end_percent",
                    **from_setting(Settings, "control_end", step=0.01),
                ),
                io.Combo.Input(
                    "union_mode",
                    options=[AUTO, *UNION_MODES],
                    default=AUTO,
                    tooltip="Only for union ControlNets with modes. auto: their gray mode.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For KSampler.")],
        )

    @classmethod
    def execute(
        cls,
        conditioning: Conditioning,
        control_net: ControlBase,
        image: Tensor,
        vae: VAE,
        strength: float,
        start_percent: float,
        end_percent: float,
        union_mode: str,
    ) -> io.NodeOutput:
        rgb = in_range(from_image(image, "Apply Grayscale ControlNet: image"))
        _require_flux(control_net, vae)
        if not torch.equal(rgb, rgb[:, :1].expand_as(rgb)):  # Gray photos stay bit-identical.
            rgb = grayscale(rgb)
        controlled, _ = nodes.ControlNetApplyAdvanced().apply_controlnet(
            conditioning,
            [],
            _in_mode(control_net, union_mode),
            to_image(rgb),
            strength,
            start_percent,
            end_percent,
            vae,
        )
        return io.NodeOutput(controlled)


def _require_flux(control_net: ControlBase, vae: VAE) -> None:
    """Raises ColorFluxError if the ControlNet or the VAE is not for FLUX.1."""
    from comfy.ldm.flux.controlnet import ControlNetFlux

    model = getattr(control_net, "control_model", None)
    if not isinstance(model, ControlNetFlux) or not model.latent_input:
        raise ColorFluxError(
            "Apply Grayscale ControlNet: control_net is not for FLUX.1's latents: connect "
            "ColorFLUX's, or one in the style of InstantX or Shakker Labs (not XLabs)."
        )
    channels = getattr(vae, "latent_channels", None)
    if channels != 16:
        raise ColorFluxError(
            f"Apply Grayscale ControlNet: vae has {channels or 'no'} latent channels, and FLUX.1 "
            "has 16: connect FLUX.1's VAE (ae.safetensors), or the bundle's."
        )


def _in_mode(control_net: ControlBase, union_mode: str) -> ControlBase:
    """The ControlNet in a union mode. Raises ColorFluxError if it does not have the mode."""
    modes = control_net.control_model.num_union_modes
    mode = UNION_GRAY_MODE if union_mode == AUTO else UNION_MODES.index(union_mode)
    if not modes and union_mode == AUTO:
        return control_net
    if mode >= modes:
        raise ColorFluxError(
            f"Apply Grayscale ControlNet: control_net has {modes or 'no'} union modes, and none "
            f"for {UNION_MODES[mode]}: set union_mode to auto or connect another."
        )
    control_net = control_net.copy()
    control_net.set_extra_arg("control_type", [mode])
    return control_net
