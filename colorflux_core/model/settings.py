"""The choices behind one colorization. Their defaults, the paper's, are written down here only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..errors import ColorFluxError
from ..photos.resize import Canvas

UNION_MODES = ("canny", "tile", "depth", "blur", "pose", "gray", "low quality")
"""By index: InstantX's union ControlNet and Shakker Labs' Pro (their Pro 2.0 needs no mode)."""

UNION_GRAY_MODE = UNION_MODES.index("gray")


@dataclass(frozen=True)
class Settings:
    """How to colorize (paper 5.1, Inference); a bundle records what its weights were trained for.

    Raises:
        ColorFluxError: for a value that cannot be used, by the name it has here.
    """

    canvas: Canvas = field(default_factory=Canvas)
    """The size at which the model works."""

    steps: int = 8
    """Euler steps."""

    guidance: float = 3.5
    """What a guidance-distilled FLUX is told; it costs no second pass."""

    control_scale: float = 1.0
    """Strength of the gray ControlNet; 0 leaves it out."""

    control_start: float = 0.0
    """Share of the steps after which the ControlNet sets in."""

    control_end: float = 1.0
    """Share of the steps after which it stops."""

    control_mode: int | None = None
    """For union ControlNets only: the index of the condition, ``UNION_GRAY_MODE`` for gray."""

    lora_scale: float = 1.0
    """Strength of the Pro-DPO LoRA; 0 leaves it out."""

    text_tokens: int = 512
    """Zero tokens before the visual prompt, where FLUX expects a text; must match the training."""

    detail: float = 0.0
    """Share of the original's fine detail in the result, 0 to 1: see ``Resizing.back``."""

    seed: int = 0
    """Of the noise that the flow starts from."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, 1000),
            ("guidance", 0, math.inf),
            ("control_scale", 0, math.inf),
            ("control_start", 0, 1),
            ("control_end", self.control_start, 1),
            ("lora_scale", -math.inf, math.inf),
            ("text_tokens", 0, math.inf),
            ("detail", 0, 1),
            ("seed", 0, 2**64 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ColorFluxError(f"{name} is {value}; set it from {low} to {high}.")

    def control_applies(self, step: int) -> bool:
        """Whether the ControlNet has a say in this step, counted from 0."""
        within = (
            self.control_start <= step / self.steps and (step + 1) / self.steps <= self.control_end
        )
        return within and self.control_scale > 0
