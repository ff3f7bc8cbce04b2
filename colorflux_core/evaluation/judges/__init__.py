"""Models that judge colorizations: a prompt, a reply parser, and the model behind an API."""

from __future__ import annotations

from .judge import Judge
from .nr_iqa import DEQA, Q_INSIGHT, VISUALQUALITY_R1
from .qwen_score import QWEN_SCORE

JUDGES: dict[str, Judge] = {
    judge.name: judge for judge in (QWEN_SCORE, DEQA, Q_INSIGHT, VISUALQUALITY_R1)
}
