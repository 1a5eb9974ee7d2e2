"""Prompts that no example says: the beginning of one before the end of another of its family.

Rules: the same examples and seed give the same prompts; they have no answer; no prompt has words of two folds, so that
what is tuned on one has not seen the words of another.

Why: where people put words together otherwise than any example does, a model meets contexts it was hardly fitted to,
and rounding may cost most there. A mix judged on examples alone gives bits away that only such contexts need: in a
model of 10 M parameters a single token of an unseen wording made up nine tenths of all KL (docs/quantization.md).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from pipeline.catalog.golden import Example
from pipeline.manifest.encoding import sha256


def crossed(examples: Sequence[Example], folds: Sequence[int], seed: int) -> list[str]:
    """Return a prompt for each example: its first words, then the last words of the next of its family and fold."""
    kin: dict[tuple[str, int], list[str]] = defaultdict(list)
    for example, fold in zip(examples, folds, strict=True):
        kin[example.family, fold].append(example.prompt)
    seen: Counter[tuple[str, int]] = Counter()
    found = []
    for n, (example, fold) in enumerate(zip(examples, folds, strict=True)):
        own = kin[example.family, fold]
        seen[example.family, fold] += 1
        other = own[seen[example.family, fold] % len(own)]
        first, second, drawn = example.prompt.split(), other.split(), sha256(f"{seed}/{n}".encode())
        end, start = int(drawn[:8], 16) % max(1, len(first)), int(drawn[8:16], 16) % max(1, len(second))
        found.append(" ".join([*first[: end + 1], *second[start:]]))
    return found
