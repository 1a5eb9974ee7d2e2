"""A variant's golden prompts, read from the registry."""

from __future__ import annotations

from pipeline.catalog.document import MAX_BYTES
from pipeline.catalog.golden import GoldenPrompt, parse_golden
from pipeline.errors import Refusal, TrustError
from pipeline.manifest.encoding import sha256
from pipeline.manifest.statement import GOLDEN, VariantEntry
from pipeline.registry.store import Store


def prompts(store: Store, entry: VariantEntry) -> list[GoldenPrompt]:
    """Return them, checked against the manifest.

    Raises:
        TrustError: MISSING_FILE, or TAMPERED.
        RegistryError: the registry is gone.
        CatalogError: the file has a line that is none.
    """
    found = next((f for f in entry.files if f.name == GOLDEN), None)
    if found is None:
        raise TrustError(
            Refusal.MISSING_FILE, f"{entry.name} has no {GOLDEN}", hint="release it with its golden prompts"
        )
    with store.open_blob(found.sha256) as stream:
        data = stream.read(min(found.size, MAX_BYTES) + 1)
    if sha256(data) != found.sha256:
        raise TrustError(Refusal.TAMPERED, f"{GOLDEN} of {entry.name} is not the file that was signed")
    return list(parse_golden(data.decode(errors="replace"), GOLDEN))
