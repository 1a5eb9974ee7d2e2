"""Which endpoint a session or a prompt's prefix belongs to, so that the server's prompt cache holds it.

Rules: rendezvous hashing (Thaler and Ravishankar 1998): an endpoint that comes or goes moves only its own keys. Loads
are bounded (Mirrokni, Thorup and Zadimoghaddam 2016, arXiv:1608.01350): an endpoint over a multiple of the mean load
passes its keys on to the next in their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pipeline.serving import capacity
from pipeline.serving.policy import Policy
from pipeline.serving.snapshot import Endpoint, Snapshot

PREFIX_CHARACTERS = 256  # of a conversation's start: the system prompt and the first turn, as a rule


def prefix_key(text: str) -> str:
    """Return the affinity key of a conversation's first text; equal starts give equal keys."""
    return hashlib.blake2b(text[:PREFIX_CHARACTERS].encode(errors="replace"), digest_size=8).hexdigest()


def ranked(key: str, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Return endpoints in the key's own order."""
    return sorted(endpoints, key=lambda e: (_weight(key, e.name), e.name), reverse=True)


def home(key: str, endpoints: Sequence[Endpoint], snapshot: Snapshot, policy: Policy) -> Endpoint:
    """Return the first endpoint in the key's order that is not overloaded; `endpoints` must hold one."""
    total = sum(snapshot.load(e) for e in endpoints) + 1
    per_slot = policy.affinity_load * total / sum(map(capacity.slots, endpoints))
    order = ranked(key, endpoints)
    fits = (e for e in order if snapshot.load(e) < max(per_slot * capacity.slots(e), 1))
    return next(fits, order[0])


def _weight(key: str, name: str) -> bytes:
    return hashlib.blake2b(f"{key}\0{name}".encode(), digest_size=8).digest()
