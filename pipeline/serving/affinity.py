"""Which endpoint a session or a prompt's prefix belongs to, so that the server's prompt cache holds it.

Rules: an endpoint that comes or goes moves only its own keys (`peers/affinity.py`). Loads are bounded (Mirrokni, Thorup
and Zadimoghaddam 2016, arXiv:1608.01350): an endpoint over a multiple of the mean load passes its keys on to the next
in their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pipeline.peers.affinity import weight
from pipeline.peers.policy import Policy
from pipeline.serving.ranking import Option

PREFIX_CHARACTERS = 256  # of a conversation's start: the system prompt and the first turn, as a rule


def prefix_key(text: str) -> str:
    """Return the affinity key of a conversation's first text; equal starts give equal keys."""
    return hashlib.blake2b(text[:PREFIX_CHARACTERS].encode(errors="replace"), digest_size=8).hexdigest()


def home(key: str, options: Sequence[Option], policy: Policy) -> Option:
    """Return the first option in the key's order that is not overloaded; `options` must hold one."""
    total = sum([o.load for o in options]) + 1
    per_slot = policy.affinity_load * total / sum([o.slots for o in options])
    fits = [o for o in options if o.load < max(per_slot * o.slots, 1)] or options
    return fits[0] if len(fits) == 1 else max(fits, key=lambda o: (weight(key, o.endpoint.name), o.endpoint.name))
