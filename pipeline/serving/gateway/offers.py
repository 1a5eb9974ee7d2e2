"""What a verified manifest allows endpoints to serve, as routing sees it.

Rules: a variant is known by the digest of the one file its servers load: the GGUF, or the large tier's `shards.json`;
KL by family is that of the check with the most prompts.
"""

from __future__ import annotations

from datetime import datetime

from pipeline.manifest.evidence import Evidence
from pipeline.manifest.rules import Accepted
from pipeline.manifest.statement import VariantEntry
from pipeline.serving.snapshot import Offered

Offers = dict[tuple[str, str], Offered]


def offers(accepted: Accepted | None, now: datetime, *, current: bool = True) -> Offers:
    """Return the variants of a release by name and digest; nothing once it has expired."""
    if accepted is None or now >= accepted.manifest.expires:
        return {}
    found = (_offered(entry, current) for entry in accepted.manifest.predicate.variants)
    return {(o.name, o.digest): o for o in found if o is not None}


def _offered(entry: VariantEntry, current: bool) -> Offered | None:
    file = entry.model_file
    if file is None:
        return None
    families = _widest(entry.evidence).quality.families if entry.evidence else {}
    kl = {name: family.mean_kl for name, family in families.items()}
    return Offered(entry.name, entry.tier, file.sha256, entry.model.context, kl, current)


def _widest(evidence: list[Evidence]) -> Evidence:
    return max(evidence, key=lambda e: len(e.answers))
