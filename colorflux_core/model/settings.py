"""The choices behind one colorization. Their defaults are the paper's, and written only here."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import ColorFluxError
from ..options import Options, setting
from ..photos.canvas import Canvas

UNION_MODES = ("canny", "tile", "depth", "blur", "pose", "gray", "low quality")
"""By index: InstantX's union ControlNet and Shakker Labs' Pro (their Pro 2.0 needs no mode)."""

UNION_GRAY_MODE = UNION_MODES.index("gray")


@dataclass(frozen=True)
class Settings(Options):
    """How to colorize (paper 5.1, Inference); a bundle records what its weights were trained for.

    Raises:
        ColorFluxError: for a value that cannot be used, by the name it has here.
    """

    canvas: Canvas = field(default_factory=Canvas)
    """The size at which the model works."""

    steps: int = setting(8, "number of Euler steps; more take longer", low=1, high=1000)
    guidance: float = setting(3.5, "guidance scale of guidance-distilled FLUX models", low=0)
    control_scale: float = setting(
        1.0, "how strictly the gray ControlNet keeps the structure; 0 disables it", low=0
    )
    control_start: float = setting(
        0.0, "fraction of the steps before the ControlNet starts", low=0, high=1
    )
    control_end: float = setting(
        1.0, "fraction of the steps after which the ControlNet stops", low=0, high=1
    )
    control_mode: int | None = setting(
        None, "for union ControlNets with modes: the index of the gray mode", low=0
    )
    lora_scale: float = setting(
        1.0, "strength of the Pro-DPO LoRA, which restores faded tones: 1 as trained, 0 disables it"
    )
    text_tokens: int = setting(
        512,
        "number of empty text tokens before the visual prompt; must match the training",
        low=0,
    )
    detail: float = setting(
        0.0,
        "how much of the original's fine detail to put back: 0 none, 1 all of it, in the model's "
        "colors",
        low=0,
        high=1,
    )
    seed: int = setting(
        0, "random seed; different seeds give different colors", low=0, high=2**64 - 1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.control_end < self.control_start:
            raise ColorFluxError(
                f"control_end is {self.control_end}: it must be at least control_start, "
                f"{self.control_start}."
            )

    def control_applies(self, step: int) -> bool:
        """Whether the ControlNet is active in this step, counted from 0."""
        within = (
            self.control_start <= step / self.steps and (step + 1) / self.steps <= self.control_end
        )
        return within and self.control_scale > 0
