"""The design of a study: which pairs a participant sees, in which order (paper, section 9).

The seed determines everything. The design is balanced: every matchup of two methods is shown
equally often, every method is left as often as right, and presentations of the same photo are
spaced apart.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple


class Pair(NamedTuple):
    """Two methods' results for one image, side by side."""

    set: str
    image: str
    left: str
    right: str

    @property
    def matchup(self) -> frozenset[str]:
        return frozenset((self.left, self.right))


def schedule(
    methods_of: Mapping[tuple[str, str], Sequence[str]],
    reference: str | None,
    seed: Hashable,
    limit: int | None = None,
) -> list[Pair]:
    """One participant's pairs, in the order they are shown.

    Args:
        methods_of: Maps (set, image) to the methods with a result.
        reference: The method on one side of every pair; None compares all methods with each other.
        seed: Seed of the study and the participant; any value with a deterministic ``repr``.
        limit: Maximum number of pairs, a balanced subset; None shows every pair once.
    """
    rng = random.Random(repr(seed))
    pairs = [*all_pairs(methods_of, reference)]
    rng.shuffle(pairs)
    if limit is not None:
        pairs = balanced(pairs, limit)
    return spaced(with_sides(pairs, rng), rng)


def all_pairs(
    methods_of: Mapping[tuple[str, str], Sequence[str]], reference: str | None
) -> Iterator[Pair]:
    """Yield all pairs of results for the same image, with the reference; sides are arbitrary."""
    for (set, image), methods in methods_of.items():
        for one, other in combinations(methods, 2):
            if reference is None or reference in (one, other):
                yield Pair(set, image, one, other)


def balanced(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """Select ``limit`` pairs with matchups, then photos, as equally frequent as possible."""
    waiting: dict[frozenset[str], list[Pair]] = {}
    for pair in pairs:
        waiting.setdefault(pair.matchup, []).append(pair)
    chosen: list[Pair] = []
    matchups, photos = Counter[frozenset[str]](), Counter[str]()
    while waiting and len(chosen) < limit:
        matchup = min(waiting, key=lambda matchup: matchups[matchup])
        pair = min(waiting[matchup], key=lambda pair: photos[pair.image])
        waiting[matchup].remove(pair)
        if not waiting[matchup]:
            del waiting[matchup]
        matchups[matchup] += 1
        photos[pair.image] += 1
        chosen.append(pair)
    return chosen


def with_sides(pairs: Iterable[Pair], rng: random.Random) -> list[Pair]:
    """Assign sides: each method is left as often as right, up to one, per matchup and overall."""
    sided: list[Pair] = []
    odd: dict[frozenset[str], Pair] = {}
    for pair in pairs:
        before = odd.pop(pair.matchup, None)
        if before is None:
            odd[pair.matchup] = pair
        else:  # Two pairs of the same matchup, one each way around.
            left, right = rng.sample(sorted(pair.matchup), 2)
            sided += [
                before._replace(left=left, right=right),
                pair._replace(left=right, right=left),
            ]
    for left, right in trails([*odd], rng):
        sided.append(odd[frozenset((left, right))]._replace(left=left, right=right))
    return sided


def trails(edges: Sequence[frozenset[str]], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Direct the edges of a simple graph so that in- and out-degrees differ by at most one.

    A trail leaves every node it enters, except its end. Trails start at nodes of odd degree as long
    as there are any and end at other such nodes, so each node is the end of at most one trail.
    """
    left = [*edges]
    while left:
        degrees = Counter(node for edge in left for node in edge)
        nodes = sorted(degrees)
        rng.shuffle(nodes)
        node = next((node for node in nodes if degrees[node] % 2), nodes[0])
        while edge := next((edge for edge in left if node in edge), None):
            left.remove(edge)
            (other,) = edge - {node}
            yield node, other
            node = other


def spaced(pairs: Sequence[Pair], rng: random.Random) -> list[Pair]:
    """Order the pairs with at least :func:`spacing` others between two of the same photo.

    Photos are identified by name across benchmark sets. The photo with the most remaining pairs
    goes first, as in task scheduling with a cooldown.
    """
    waiting: dict[str, list[Pair]] = {}
    for pair in rng.sample(pairs, len(pairs)):
        waiting.setdefault(pair.image, []).append(pair)
    apart = spacing(pairs)
    order: list[Pair] = []
    while len(order) < len(pairs):
        recent = {pair.image for pair in order[-apart:]} if apart else set()
        names = [name for name, left in waiting.items() if left and name not in recent]
        most = max(len(waiting[name]) for name in names)
        name = rng.choice([name for name in names if len(waiting[name]) == most])
        order.append(waiting[name].pop())
    return order


def spacing(pairs: Sequence[Pair]) -> int:
    """Half the number of photos, or less if that is not feasible."""
    times = Counter(pair.image for pair in pairs)
    most = max(times.values(), default=0)
    if most < 2:
        return 0
    with_most = sum(count == most for count in times.values())
    return min((len(pairs) - with_most) // (most - 1) - 1, len(times) // 2)
