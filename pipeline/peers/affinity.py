"""Which of several servers a session belongs to, before anything is known of how they are.

Rules: rendezvous hashing (Thaler and Ravishankar 1998): of all servers the one with the greatest weight, so that one
that comes or goes moves only its own sessions.
"""

from __future__ import annotations

import hashlib


def weight(key: str, name: str) -> bytes:
    """Return how much a session belongs to a server."""
    return hashlib.blake2b(f"{key}\0{name}".encode(), digest_size=8).digest()
