"""Write a study's results as Markdown, CSV and a bar chart like the paper's Figure 8."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ..report.table_text import MISSING, escape_markdown, markdown_lines
from ..rows import write_file, write_rows
from .results import (
    Bounds,
    Response,
    WinRate,
    agreement,
    bradley_terry,
    position_bias,
    read_responses,
    wilson,
    win_rates,
)
from .study import Study, read_study

COLUMNS = ("set", "method", "opponent", "wins", "ties", "losses", "win_rate")
INTERVALS = ("wilson_low", "wilson_high", "crossed_low", "crossed_high")

EXPLANATION = """\
A tie counts as half a win. Both intervals are at 95 %. Wilson's interval treats all answers as
independent. The bootstrap resamples participants and photos, so it holds for other people and other
photos, and tends to be conservative (too wide).
"""


def write_results(folder: Path, output: Path) -> str:
    """Write results.md, results.csv and results.svg to ``output`` and return the Markdown.

    Raises:
        ColorFluxError: if ``folder`` has no study or no answers, or a file cannot be written.
    """
    study = read_study(folder)
    responses = read_responses(folder, study)
    rates = win_rates(study, responses)
    text = markdown(study, responses, rates)
    write_rows(output / "results.csv", (*COLUMNS, *INTERVALS), map(csv_row, rates))
    write_file(output / "results.svg", bars(rates).encode())
    write_file(output / "results.md", text.encode())
    return text


def csv_row(rate: WinRate) -> list[object]:
    """Format a CSV row; an undefined bound is an empty cell."""
    bounds = ("" if math.isnan(bound) else bound for bound in (*rate.wilson, *rate.bootstrap))
    return [*rate[:6], rate.rate, *bounds]


def markdown(study: Study, responses: Sequence[Response], rates: Sequence[WinRate]) -> str:
    """Format results.md: win rates, strengths without a reference, and reliability checks."""
    answered: dict[str, list[Response]] = {}
    for one in responses:
        answered.setdefault(one.participant, []).append(one)
    finished = sum(len(theirs) == len(study.schedule(name)) for name, theirs in answered.items())
    parts = [
        "# User study\n",
        f"{len(responses)} answers of {len(answered)} participants, {finished} of whom finished.\n",
        "![Win rates](results.svg)\n",
        table(
            ("Set", "Method", "Against", "Wins : ties : losses", "Win rate", "Wilson", "Bootstrap"),
            (
                (
                    rate.set or "all",
                    rate.method,
                    rate.opponent or "all others",
                    f"{rate.wins} : {rate.ties} : {rate.losses}",
                    percent(rate.rate),
                    between(rate.wilson),
                    between(rate.bootstrap),
                )
                for rate in rates
            ),
        ),
        EXPLANATION,
    ]
    if study.reference is None:
        ranking = sorted(bradley_terry(study, responses).items(), key=lambda item: -item[1])
        parts += [
            "## Strengths\n",
            table(("Method", "Strength"), ((name, f"{value:+.2f}") for name, value in ranking)),
            "Bradley-Terry model: log odds of winning against the average method. The difference\n"
            "between two methods is the log odds of one winning against the other.\n",
        ]
    parts += ["## Reliability\n", *checks(responses)]
    parts.append(
        table(
            ("Participant", "Answered", "Chose the left image"),
            (
                (
                    name,
                    f"{len(theirs)} of {len(study.schedule(name))}",
                    share(*position_bias(theirs)),
                )
                for name, theirs in answered.items()
            ),
        )
    )
    return "\n".join(parts)


def checks(responses: Sequence[Response]) -> Iterable[str]:
    """Yield Markdown lines on position bias and agreement between participants."""
    left, decided = position_bias(responses)
    yield (
        f"- Position bias: the left image was chosen in {share(left, decided)} of the answers"
        f" without ties ({between(wilson(left, decided))}); without a bias it is 50 %."
    )
    same, compared = agreement(responses)
    if compared:
        yield (
            "- Agreement: two participants gave the same answer to the same pair in"
            f" {share(same, compared)} of {compared} cases."
        )
    yield ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["--"] * len(header), *([*map(escape_markdown, row)] for row in rows)]
    return markdown_lines(lines)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else MISSING


def between(bounds: Bounds) -> str:
    if math.isnan(bounds.low):
        return MISSING
    return f"{100 * bounds.low:.1f} to {percent(bounds.high)}"


WIN, TIE, LOSS, INK = "#8fb8d8", "#dcdcdc", "#edc48a", "#222"
NAME, SHARE, BAR, ROW, MARGIN = 180, 64, 480, 46, 16
"""Pixels: width of the names, the percentages and the bars; row height; margin."""


def bars(rates: Sequence[WinRate]) -> str:
    """Draw an SVG bar chart of wins, ties and losses over all sets, with Wilson intervals."""
    shown = [rate for rate in rates if not rate.set and rate.opponent]
    methods = {rate.method for rate in shown}
    winner = f"{methods.pop()} wins" if len(methods) == 1 else "first wins"
    legend = [(WIN, winner), (TIE, "tie"), (LOSS, "other wins")]
    if not any(rate.ties for rate in shown):
        del legend[1]
    left, top = MARGIN + NAME + SHARE, MARGIN + ROW * len(shown) + 10
    width, height = left + BAR + SHARE + MARGIN, top + 14 + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" font-family="sans-serif" font-size="15" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for index, rate in enumerate(shown):
        name = f"{rate.method} : {rate.opponent}" if winner == "first wins" else rate.opponent
        parts += bar(rate, name, left, MARGIN + ROW * index)
    for color, meaning in legend:
        parts.append(f'<rect x="{left}" y="{top}" width="14" height="14" fill="{color}"/>')
        parts.append(f'<text x="{left + 20}" y="{top + 12}">{escape(meaning)}</text>')
        left += 44 + 8 * len(meaning)
    return "\n".join([*parts, "</svg>\n"])


def bar(rate: WinRate, name: str, left: int, top: int) -> Iterable[str]:
    """Yield the SVG elements of one bar."""
    height = ROW - 14
    middle, right = top + height / 2, left + BAR

    def text(x: float, content: str, anchor: str = "start") -> str:
        return f'<text x="{x}" y="{middle + 5}" text-anchor="{anchor}">{escape(content)}</text>'

    yield text(left - SHARE - 8, name if len(name) <= 24 else f"{name[:23]}…", "end")
    yield text(left - 8, percent(rate.rate), "end")
    yield text(right + 8, percent(1 - rate.rate))
    start: float = left
    for count, color in ((rate.wins, WIN), (rate.ties, TIE), (rate.losses, LOSS)):
        part = BAR * count / rate.answers
        yield (
            f'<rect x="{start:.2f}" y="{top}" width="{part:.2f}" height="{height}" fill="{color}"/>'
        )
        start += part
    low, at, high = (left + BAR * value for value in (rate.wilson.low, rate.rate, rate.wilson.high))
    yield (
        f'<path d="M{low:.2f} {middle - 5}v10m0 -5H{high:.2f}m0 -5v10M{at:.2f} {top}v{height}"'
        f' fill="none" stroke="{INK}" stroke-width="1.6"/>'
    )
