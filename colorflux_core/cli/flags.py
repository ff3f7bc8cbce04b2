"""Command-line flags from dataclasses of settings, and the parser of all commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from ..errors import ColorFluxError
from ..options import Options, Range, number, settings

Group = argparse._ArgumentGroup

YES, NO = {"true", "t", "yes", "y", "1"}, {"false", "f", "no", "n", "0"}
METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
SIMILAR = 0.7
"""How alike, from 0 to 1, a flag must be to what was typed, to be suggested."""


class Parser(argparse.ArgumentParser):
    """For ``python -m <package>.<prog> <usage>``.

    Flags are shown with dashes and accepted with underscores too. A mistake raises ColorFluxError,
    which says what may have been meant.
    """

    def __init__(
        self,
        prog: str,
        usage: str,
        description: str,
        epilog: str = "",
        package: str = "colorflux_core",
    ) -> None:
        super().__init__(
            prog=prog,
            usage=f"python -m {package}.{prog} {usage}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = list(sys.argv[1:] if args is None else args)
        if self._subparsers is None:  # Else the command's own parser knows the flags.
            words = self._spelled_out(words)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise ColorFluxError(f"{message.removeprefix('argument ')} (--help explains)")

    def _spelled_out(self, words: list[str]) -> list[str]:
        """``--batch_size=4`` as ``--batch-size=4``, ``--shard=false`` as ``--no-shard``."""
        end = words.index("--") if "--" in words else len(words)
        takes_values = not self._get_positional_actions()  # Else "--gray 1" may name a photo.
        spelled: list[str] = []
        for word in words[:end]:
            before = spelled[-1] if spelled else ""
            name, equals, value = word.partition("=")
            if not word.startswith("--"):
                if takes_values and self._is_switch(before) and word.lower() in YES | NO:
                    spelled[-1] = _switched(before, word)
                else:
                    spelled.append(word)
                continue
            flag = name.replace("_", "-")
            if flag not in self._option_string_actions:
                self._refuse(name, flag)
            if equals and self._is_switch(flag) and value.lower() in YES | NO:
                spelled.append(_switched(flag, value))
            else:
                spelled.append(flag + equals + value)
        return spelled + words[end:]

    def _is_switch(self, flag: str) -> bool:
        return isinstance(
            self._option_string_actions.get(flag), argparse.BooleanOptionalAction
        ) and not flag.startswith("--no-")

    def _refuse(self, name: str, flag: str) -> NoReturn:
        similar = get_close_matches(flag, self._option_string_actions, n=1, cutoff=SIMILAR)
        if similar:
            raise ColorFluxError(f"unrecognized argument {name}: did you mean {similar[0]}?")
        self.error(f"unrecognized argument {name}")


def _switched(flag: str, value: str) -> str:
    return flag if value.lower() in YES else flag.replace("--", "--no-", 1)


def flag_of(name: str) -> str:
    """A setting's flag."""
    return f"--{name.replace('_', '-')}"


def add_settings(
    parser: Parser,
    options: type[Options],
    names: Iterable[str] | None = None,
    unset: str = "",
) -> None:
    """A flag for each setting (or only for ``names``), under the headings of their groups.

    ``unset`` is as in :func:`add_setting`.
    """
    groups = {group.title: group for group in parser._action_groups}
    for name in settings(options) if names is None else names:
        title = settings(options)[name].metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        add_setting(groups[title], options, name, unset=unset)


def add_setting(
    group: Group, options: type[Options], name: str, flag: str = "", unset: str = ""
) -> None:
    """A setting's flag, with its help, default and range. Not given, it is parsed as None.

    Args:
        group: Where ``--help`` shows it.
        options: The dataclass.
        name: The field.
        flag: By default the field's name, with dashes.
        unset: What is used when it is not given; by default the field's default.
    """
    option = settings(options)[name]
    kind, choices = value_type(options, name)
    flag = flag or flag_of(name)
    text = described(option, unset).replace("%", "%%")
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        return
    group.add_argument(
        flag,
        type=_converter(kind, option.metadata["range"]),
        choices=choices,
        metavar=None if choices else option.metadata["metavar"] or METAVARS[kind],
        help=text,
    )


def given(args: argparse.Namespace, options: type[Options]) -> dict[str, Any]:
    """The settings whose flags were given."""
    found = {name: getattr(args, name, None) for name in settings(options)}
    return {name: value for name, value in found.items() if value is not None}


def value_type(options: type[Options], name: str) -> tuple[type, tuple[str, ...] | None]:
    """A setting's type without the None of optional ones, and its choices if it has some."""
    hint = get_type_hints(options)[name]
    if type(None) in get_args(hint):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    return (str, get_args(hint)) if get_origin(hint) is Literal else (hint, None)


def described(option: Field[Any], unset: str = "") -> str:
    """A setting's line in ``--help``: what it does, then its default and its range."""
    default = unset or shown(option.default)
    facts = (default and f"default: {default}", str(option.metadata["range"]))
    known = "; ".join(filter(None, facts))
    return option.metadata["help"] + (f" ({known})" if known else "")


def shown(value: object) -> str:
    """A default as ``--help`` and the documentation show it; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return number(value) if isinstance(value, int | float) else str(value)


def _converter(kind: type, allowed: Range) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError as error:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from error
        if kind in (int, float) and value not in allowed:
            bounds = str(allowed) or "a number"
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {bounds}")
        return value

    return convert


def whole_number(low: int) -> Callable[[str], int]:
    """An argument's type: a whole number of at least ``low``."""
    return _converter(int, Range(low))


def named_path(text: str) -> Path:
    """An argument's type: a path, and not the empty one, which is the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(text)


def name_and_place(text: str) -> tuple[str, str]:
    """An argument's type: ``NAME=PLACE``."""
    name, _, place = text.partition("=")
    if not name.strip() or not place:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PLACE")
    return name.strip(), place
