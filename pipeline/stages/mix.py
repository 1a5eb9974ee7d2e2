"""A mix: one option for each surveyed matrix, what it costs a target, and the recipe that says it.

Rules: pure; a recipe's patterns are those `llama-quantize --tensor-type-file` reads, layers of one kind and type in one
line; its base is the preset of the type most weights have.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.catalog.recipe import Recipe
from pipeline.manifest.search import BYTES, INSTRUCTIONS, READ
from pipeline.stages import knapsack
from pipeline.stages.survey import EMBEDDING, Option, Survey, Surveyed, Weigh, size

BASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # others are called as their type
SWAPS = 100  # single changes of each direction that are paired
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")

Places = tuple[int, ...]  # of each matrix, the place of its option


@dataclass(frozen=True)
class Market:
    """A tier's options at one target's costs: `per_weight` instructions by type."""

    survey: Survey
    per_weight: Mapping[str, float]
    kinds: frozenset[str]

    @cached_property
    def groups(self) -> list[list[Option]]:
        """Each matrix's options that the target may have; all where none of its types fits the matrix."""
        return [
            [option for option in matrix.options if option.type in self.kinds] or matrix.options
            for matrix in self.survey.matrices
        ]

    def takes(self, matrix: Surveyed, kind: str) -> dict[str, float]:
        """Return what a matrix of a type takes of what can be limited."""
        bytes_ = size(kind, matrix.columns, matrix.rows)
        if matrix.name == EMBEDDING and not self.survey.tied:  # one row a token, and nothing multiplied
            return {BYTES: bytes_, READ: bytes_ / matrix.rows, INSTRUCTIONS: 0.0}
        return {BYTES: bytes_, READ: bytes_, INSTRUCTIONS: matrix.rows * matrix.columns * self.per_weight[kind]}

    def sizes(self, types: Mapping[str, str]) -> dict[str, float]:
        """Return what a file takes whose matrices have these types."""
        sums: Counter[str] = Counter()
        for matrix in self.survey.matrices:
            sums.update(self.takes(matrix, types[matrix.name]))
        return dict(sums)

    def total(self, places: Places) -> dict[str, float]:
        """Return what a mix takes."""
        return self.sizes(self.types(places))

    def types(self, places: Places) -> dict[str, str]:
        """Return each matrix's type."""
        return {matrix.name: option.type for matrix, option in self.options(places)}

    def options(self, places: Places) -> Iterator[tuple[Surveyed, Option]]:
        """Yield each matrix with its option."""
        chosen = (group[place] for group, place in zip(self.groups, places, strict=True))
        return zip(self.survey.matrices, chosen, strict=True)

    def loss(self, places: Places, weigh: Weigh) -> float:
        """Return a mix's predicted loss: those of its matrices, added up."""
        return sum(self.survey.total(option.kl, weigh) for _, option in self.options(places))

    def solve(self, limits: Mapping[str, float], weigh: Weigh) -> knapsack.Solution | None:
        """Return the mix of least predicted loss within limits."""
        return knapsack.solve(self._priced(weigh), limits)

    def _priced(self, weigh: Weigh) -> list[list[knapsack.Option]]:
        """What each option loses and takes."""
        return [
            [knapsack.Option(self.survey.total(o.kl, weigh), self.takes(matrix, o.type)) for o in group]
            for matrix, group in zip(self.survey.matrices, self.groups, strict=True)
        ]

    def near(self, places: Places, limits: Mapping[str, float], weigh: Weigh) -> Iterator[Places]:
        """Yield mixes within limits that differ in one matrix or two, by their predicted loss."""
        priced = self._priced(weigh)
        changes = sorted(
            (option.loss - priced[at][place].loss, at, to)
            for at, place in enumerate(places)
            for to, option in enumerate(priced[at])
            if to != place
        )
        better = [c for c in changes if c[0] < 0][-SWAPS:]
        worse = [c for c in changes if c[0] >= 0][:SWAPS]
        some = [*better, *worse]
        found: list[tuple[float, tuple[tuple[float, int, int], ...]]] = [(a[0], (a,)) for a in some]
        found += [(a[0] + b[0], (a, b)) for n, a in enumerate(some) for b in some[n + 1 :] if a[1] != b[1]]
        before = self.total(places)
        for _, made in sorted(found):
            after = dict(before)
            for _, at, to in made:
                for name in limits:
                    after[name] += priced[at][to].takes[name] - priced[at][places[at]].takes[name]
            if all(after[name] <= limit for name, limit in limits.items()):
                changed = {at: to for _, at, to in made}
                yield tuple(changed.get(at, place) for at, place in enumerate(places))

    def recipe(self, places: Places) -> Recipe:
        """Return the recipe that gives each matrix its option."""
        weights: Counter[str] = Counter()
        for matrix, option in self.options(places):
            weights[option.type] += matrix.rows * matrix.columns
        common = max(sorted(weights), key=lambda kind: weights[kind])
        guided = any(option.imatrix for _, option in self.options(places))
        bare = [
            matrix.name
            for matrix, option in self.options(places)
            if not option.imatrix and any(o.imatrix and o.type == option.type for o in matrix.options)
        ]
        return Recipe(
            base=BASES.get(common, common),
            imatrix=guided,
            tensors=patterns(self.types(places)),
            no_imatrix=sorted(bare) if guided else [],
        )


def patterns(types: Mapping[str, str]) -> list[str]:
    """Return PATTERN=TYPE lines that give each tensor its type, and match nothing else among them."""
    layers: dict[tuple[str, str], list[int]] = defaultdict(list)
    every: dict[str, set[int]] = defaultdict(set)
    single = []
    for name, kind in types.items():
        if (found := _BLOCK.fullmatch(name)) is None:
            single.append(f"^{re.escape(name)}$={kind}")
        else:
            layers[found[2], kind].append(int(found[1]))
            every[found[2]].add(int(found[1]))
    lines = []
    for (part, kind), numbers in sorted(layers.items()):
        chosen = r"\d+" if set(numbers) == every[part] else _either(sorted(numbers))
        lines.append(rf"^blk\.{chosen}\.{re.escape(part)}$={kind}")
    return [*sorted(single), *lines]


def _either(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"({'|'.join(map(str, numbers))})"
