"""docs/evaluation.md describes each metric and judge as the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from colorflux_core.evaluation.judges import JUDGES
from colorflux_core.evaluation.metrics.metrics import METRICS, Metric

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
BETTER = {"higher": "higher", "lower": "lower", "truth": "closest to truth"}
AGAINST = {
    "nothing": "",
    "input": "the gray image",
    "truth": "the photo",
    "before": "the previous frame",
}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.column.key)
def test_metrics(metric: Metric) -> None:
    column = metric.column
    title = f"{column.title} ({column.unit})" if column.unit else column.title
    cells = (title, BETTER[column.direction], AGAINST[metric.against], column.explanation)
    assert f"| {' | '.join(cells)} |\n" in TEXT


def test_judges() -> None:
    assert all(f"\n| `{name}` |" in TEXT for name in JUDGES)
