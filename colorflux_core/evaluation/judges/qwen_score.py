"""Qwen-score (paper, sections 4.3 and 8): a vision-language model scores six aspects, 0 to 100.

The prompt is our own; ``--template`` replaces it, for example with the paper's (Figure 11). Scores
are only comparable between runs that use the same template.
"""

from __future__ import annotations

from functools import partial

from .judge import Judge
from .parsing import read_aspects
from .template import Template

ASPECTS = {
    "color_richness": "CRI",
    "color_rationality": "CRA",
    "color_consistency": "CCS",
    "structural_consistency": "SCS",
    "aesthetic": "AES",
    "overall": "OA",
}
"""Maps the keys of the reply to metric names."""

TEXT = """\
{gray}
{colorized}
Both pictures show the same scene. The first is a black-and-white photograph; the second is what a
colorization program made of it. Score the second picture on six criteria. Look at the first one
for structural_consistency alone.

Each score is a number from 0 to 100: 100 is beyond reproach, 50 is middling, 0 is a failure. Use
the whole range, and do not let one criterion color another: lively colors can be wrong, and right
ones can be dull. If the second picture is still gray, or is tinted all over in one hue, its
color_richness, color_rationality and aesthetic are 0.

- color_richness: Are there as many distinct hues as the scene gives reason for, and are they as
  strong as in a good photograph? Low for pale or uniform tints, and for gaudy colors that no
  camera would record.
- color_rationality: Could each thing have its color in reality: skin, sky, plants, fabrics,
  buildings, the light of the hour? Do the colors suit each other? Low for colors that such things
  hardly ever have.
- color_consistency: Does color keep to the thing that it belongs to? Low where it runs over
  outlines or blurs at them, where one surface is patchy, or where parts of one thing differ for
  no reason.
- structural_consistency: Is every shape, face, texture and letter of the first picture in the
  second, unchanged and in its place, and nothing else? Low for anything redrawn, moved, added or
  lost, however small.
- aesthetic: How much does the second picture please as a color photograph, in its tones, balance
  and mood?
- overall: Your verdict on the colorization, with all of the above in view.

Reply with one JSON object and nothing else. In place of each N, put your score:
{"color_richness": N, "color_rationality": N, "color_consistency": N, "structural_consistency": N,
"aesthetic": N, "overall": N, "rationale": "a short reason for each score"}
"""

QWEN_SCORE = Judge(
    name="qwen-score",
    metrics=tuple(ASPECTS.values()),
    template=Template(TEXT),
    read=partial(read_aspects, metrics=ASPECTS, low=0, high=100),
    reminder=(
        "I could not read that. Reply again with one JSON object and nothing else: the keys "
        f"{', '.join(ASPECTS)}, each with a number from 0 to 100, and rationale with a text."
    ),
)
