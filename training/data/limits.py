"""Which photos the stages use (paper 7.2 and 7.3)."""

from __future__ import annotations

from dataclasses import dataclass

from colorflux_core.cli.flags import flag_of
from colorflux_core.errors import ColorFluxError
from colorflux_core.options import Options, setting

from ..config import DATA


@dataclass
class PhotoLimits(Options):
    """How colorful and how well exposed a photo must be. Structure training uses all photos.

    Raises ColorFluxError when a minimum is above its maximum.
    """

    min_colorfulness: float = setting(
        15.0, "minimum colorfulness of photos for basic_color and pro_dpo", low=0, group=DATA
    )
    min_saturation: float = setting(
        0.3, "minimum mean HSV saturation of photos for pro_dpo", low=0, high=1, group=DATA
    )
    max_saturation: float = setting(
        0.7, "maximum mean HSV saturation of photos for pro_dpo", low=0, high=1, group=DATA
    )
    min_value: float = setting(
        0.4, "minimum mean HSV value of photos for pro_dpo", low=0, high=1, group=DATA
    )
    max_value: float = setting(
        0.8, "maximum mean HSV value of photos for pro_dpo", low=0, high=1, group=DATA
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for low, high in (("min_saturation", "max_saturation"), ("min_value", "max_value")):
            if getattr(self, low) > getattr(self, high):
                raise ColorFluxError(
                    f"{flag_of(low)} {getattr(self, low)} is above "
                    f"{flag_of(high)} {getattr(self, high)}"
                )
