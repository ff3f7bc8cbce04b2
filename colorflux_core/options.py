"""Settings as dataclass fields, so that a default, its range and its help text are written once.

Flags (:mod:`colorflux_core.cli.flags`), the nodes' inputs (``nodes/schema.py``) and the tables in
the documentation all read them from the dataclass. Importing this module takes milliseconds.

transformers' ``HfArgumentParser`` is not used: importing it takes seconds, which every ``--help``
and every typo would wait for; it has no ranges, groups or suggestions; and it fills in defaults, so
that a flag that was not given cannot be told from one that repeats the default. Here the former
leaves a recipe's or a bundle's value in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar

from .errors import ColorFluxError


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, both included, that are multiples of ``multiple_of``.

    Without a ``multiple_of``, all numbers. NaN is in no range.
    """

    low: float = -math.inf
    high: float = math.inf
    multiple_of: int | None = None

    def __contains__(self, value: float) -> bool:
        in_bounds = self.low <= value <= self.high
        return in_bounds and (self.multiple_of is None or value % self.multiple_of == 0)

    def __str__(self) -> str:
        """As it follows "it must be"; empty if every number is allowed."""
        has_low, has_high = self.low > -math.inf, self.high < math.inf
        bounds = ""
        if has_low and has_high:
            bounds = f"from {number(self.low)} to {number(self.high)}"
        elif has_low:
            bounds = f"at least {number(self.low)}"
        elif has_high:
            bounds = f"at most {number(self.high)}"
        if self.multiple_of is None:
            return bounds
        return ", ".join(filter(None, (f"a multiple of {self.multiple_of}", bounds)))


def number(value: float) -> str:
    """As a person would write it: 3.5, 1e-05, 512, 2**64 - 1."""
    if not isinstance(value, int):
        return f"{value:g}"
    is_all_ones = value >= 2**32 and value & (value + 1) == 0
    return f"2**{value.bit_length()} - 1" if is_all_ones else str(value)


def setting(
    default: Any,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    multiple_of: int | None = None,
    metavar: str | None = None,
    group: str = "settings",
    may_change: bool = False,
) -> Any:
    """A field of an :class:`Options` dataclass.

    Args:
        default: Its value when nothing else is given.
        help: What it does, as a phrase: lower case, no full stop, no default, no range.
        low: The smallest value allowed.
        high: The largest value allowed.
        multiple_of: The value must be a multiple of this.
        metavar: Stands for the value in ``--help``; by default the type decides.
        group: The heading under which ``--help`` lists it.
        may_change: Whether a training run can be resumed with another value.
    """
    metadata = {
        "help": help,
        "range": Range(low, high, multiple_of),
        "metavar": metavar,
        "group": group,
        "may_change": may_change,
    }
    return field(default=default, metadata=metadata)


def inherit(options: type[Options], name: str, default: Any = MISSING, **changes: Any) -> Any:
    """The same setting as that of another dataclass, with another default or other metadata."""
    original = settings(options)[name]
    if default is MISSING:
        default = original.default
    return field(default=default, metadata={**original.metadata, **changes})


def settings(options: type[Options] | Options) -> Mapping[str, Field[Any]]:
    """The fields that :func:`setting` made, by name."""
    return {option.name: option for option in fields(options) if "help" in option.metadata}


class Options:
    """The base of dataclasses of settings: values must be in their ranges.

    Raises ColorFluxError, which names the setting, for a number out of its range.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __post_init__(self) -> None:
        for name, option in settings(self).items():
            value, allowed = getattr(self, name), option.metadata["range"]
            is_number = isinstance(option.default, int | float) or allowed != Range()
            if is_number and value is not None and value not in allowed:
                raise ColorFluxError(f"{name} is {value}: it must be {str(allowed) or 'a number'}.")
