"""What a server of a pool says of itself at `GET /status`: the one thing gateways know of nodes and large servers.

Rules: whoever reads it trusts none of it but what it can compare with a verified manifest; what a machine cannot
measure is null, never a guess.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from pipeline.manifest.encoding import Count, Record, Sha256

STATUS_PATH = "/status"
Share = Annotated[float, Field(ge=0, le=1)]


class Pool(StrEnum):
    """The servers of a kind."""

    EDGE = "edge"
    NVLINK = "nvlink"


class State(StrEnum):
    """What a server does with new requests: only a ready one takes them."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Served(Record):
    """What is loaded: the variant, its release, and its model file's digest (a GGUF's; of large, `shards.json`'s)."""

    variant: str
    model_sha256: Sha256
    release_line: str
    release_version: Annotated[int, Field(ge=1)]
    manifest_sha256: Sha256


class ServerStatus(Record):
    """One server's state.

    `slots` requests are decoded at once and `queued` wait; `context` is tokens a slot; `cpu` the share of all
    processors in use over the last seconds; `temperature_c` and `throttled` are the board's, where it has sensors;
    `reason` says why a server is not ready, or stayed on an older release.
    """

    schema_version: Literal[1] = 1
    name: str
    pool: Pool
    state: State
    served: Served | None = None
    slots: Count = 0
    busy: Count = 0
    queued: Count = 0
    context: Count = 0
    cpu: Share | None = None
    temperature_c: float | None = None
    throttled: list[str] = Field(default_factory=list)
    reason: str | None = None
