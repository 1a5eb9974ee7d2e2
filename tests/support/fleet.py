"""Fleets for routing's tests: endpoints and a release in few words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.catalog.names import Tier
from pipeline.peers.status import Pool, State
from pipeline.serving.snapshot import Endpoint, Offered, Snapshot

TINY, MID, LARGE = "tiny-edge-arm64", "mid-tier-arm64", "large-x86_64"
TUNED = f"{TINY}+lookup"
DIGESTS = {TINY: "1" * 64, MID: "2" * 64, LARGE: "3" * 64, TUNED: "4" * 64}
OLD = "0" * 64  # the tiny model's file of the release before
KL = {TINY: {"lookup": 0.02, "total": 0.01}, TUNED: {"lookup": 0.005, "total": 0.09}}


def offered() -> dict[tuple[str, str], Offered]:
    """Return a release with a tuned variant, and the tiny variant of the release before."""
    found = {
        (name, digest): Offered(name, next(t for t in Tier if name.startswith(t)), digest, 4096, KL.get(name, {}))
        for name, digest in DIGESTS.items()
    }
    return {**found, (TINY, OLD): replace(found[TINY, DIGESTS[TINY]], digest=OLD, current=False)}


def endpoint(name: str, variant: str = TINY, **changes: Any) -> Endpoint:
    """Return a ready, idle endpoint; the large variant's is in the NVLink pool."""
    pool = Pool.NVLINK if variant == LARGE else Pool.EDGE
    usual: dict[str, Any] = {
        "url": f"http://{name}",
        "pool": pool,
        "state": State.READY,
        "variant": variant,
        "digest": DIGESTS.get(variant),
        "slots": 4,
        "context": 4096,
        "cpu": 0.2,
        "round_trip_ms": 30.0 if pool is Pool.NVLINK else 5.0,
        "service_ms": 400.0,
        "token_ms": 10.0,
    }
    return Endpoint(name=name, **{**usual, **changes})


def fleet(*endpoints: Endpoint, in_flight: dict[str, int] | None = None) -> Snapshot:
    """Return a snapshot of endpoints under the release of `offered`."""
    return Snapshot(endpoints, offered(), in_flight or {})
