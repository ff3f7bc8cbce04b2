"""The paper's no-reference image quality metrics (section 5.1), from 1 (bad) to 5 (excellent).

Q-Insight (Li et al. 2025) and VisualQuality-R1 (Wu et al. 2025) are Qwen2.5-VL models trained to
reason before they rate. The prompts are our own, in the format the models were trained on; use
``--template`` for the authors' exact prompts. DeQA-Score (You et al. 2025) has a built-in prompt
and runs in its own server, ``deqa/serve.py``.
"""

from __future__ import annotations

from functools import partial

from .judge import Judge
from .parsing import read_rating
from .template import Template

SCALE = "a number from 1 to 5 with two decimals, where 1 is a very poor and 5 an excellent picture"


def rating_judge(name: str, metric: str, template: str, form: str) -> Judge:
    """Create a judge that rates one image from 1 to 5; ``form`` is the reply format."""
    return Judge(
        name=name,
        metrics=(metric,),
        template=Template(template),
        read=partial(read_rating, metric=metric, low=1, high=5),
        reminder=f"I could not read that. Rate the picture again, in this form: {form}",
    )


DEQA = rating_judge("deqa", "DeQA", "{colorized}", '{"rating": N}, N being from 1 to 5.')

Q_INSIGHT = rating_judge(
    "q-insight",
    "Q-Insight",
    "A user asks, an assistant answers. The assistant thinks the question over before it answers: "
    "its thoughts stand between <think> and </think>, then its answer between <answer> and "
    "</answer>.\n"
    "{user}\n"
    "{colorized}\n"
    f"How good is the quality of this picture overall? Rate it: {SCALE}. "
    'Answer in JSON, with the rating under the key "rating".',
    '<think>your thoughts</think><answer>{"rating": N}</answer>, N being from 1 to 5.',
)

VISUALQUALITY_R1 = rating_judge(
    "visualquality-r1",
    "VQ-R1",
    "{colorized}\n"
    "This is a task of assessing image quality. How good is the quality of this picture overall? "
    f"Rate it: {SCALE}. First think, between <think> and </think>; then give the rating alone "
    "between <answer> and </answer>.",
    "<think>your thoughts</think><answer>N</answer>, N being from 1 to 5.",
)
