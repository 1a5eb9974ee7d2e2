"""Prompts that no example says: the beginning of one before the end of another of its family.

Rules: the same examples and seed give the same prompts; they have no answer.

Why: where people put words together otherwise than any example does, a model meets contexts it was hardly fitted to,
and rounding may cost most there. A mix judged on examples alone gives bits away that only such contexts need: in a
model of 10 M parameters a single token of an unseen wording made up nine tenths of all KL (docs/quantization.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pipeline.catalog.golden import Example
from pipeline.manifest.encoding import sha256


def crossed(examples: Sequence[Example], seed: int, *, apart: int) -> list[str]:
    """Return a prompt for each example: its first words, then the last words of another example of its family.

    Args:
        apart: how many examples of the family further on the other one stands; that of folds in turn crosses none.
    """
    kin: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        kin[example.family].append(example.prompt)
    seen: dict[str, int] = defaultdict(int)
    found = []
    for n, example in enumerate(examples):
        other = kin[example.family][(seen[example.family] + apart) % len(kin[example.family])]
        seen[example.family] += 1
        first, second, drawn = example.prompt.split(), other.split(), sha256(f"{seed}/{n}".encode())
        end, start = int(drawn[:8], 16) % max(1, len(first)), int(drawn[8:16], 16) % max(1, len(second))
        found.append(" ".join([*first[: end + 1], *second[start:]]))
    return found
