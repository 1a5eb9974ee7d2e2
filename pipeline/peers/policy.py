"""How requests are routed: every number of it, with its unit and why it is what it is.

Rules: a policy is a whole document with a version of its own, so that a decision can be explained later; the defaults
are the numbers the edge teams asked for.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.catalog.document import Document, parse_yaml

Milliseconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Policy(Document):
    """The numbers `route` decides by."""

    schema_version: Literal[1] = 1
    version: Annotated[int, Field(ge=1, description="raised with every change, shown in logs and metrics")] = 1
    tiny_prompt_tokens: Annotated[
        int, Field(ge=1, description="tokens; a prompt below this fits tiny-edge, longer ones it answers badly")
    ] = 64
    long_generation_tokens: Annotated[
        int, Field(ge=1, description="tokens; an answer that may reach this holds an edge slot for too long")
    ] = 256
    assumed_tokens: Annotated[
        int, Field(ge=1, description="tokens; an answer's length where the request bounds it not, to foresee its time")
    ] = 64
    queue_wait_ms: Annotated[Milliseconds, Field(description="ms; an edge node is busy when waiting takes longer")] = (
        100.0
    )
    cpu: Annotated[Share, Field(description="share; an edge node is busy above it: decoding slows down")] = 0.80
    core_far_ms: Annotated[
        Milliseconds,
        Field(description="ms round trip to the NVLink pool; beyond it a busy edge node answers sooner than the core"),
    ] = 150.0
    near_ms: Annotated[
        Milliseconds, Field(description="ms; round trips that differ by less are equally near, the idler node wins")
    ] = 2.0
    affinity_load: Annotated[
        float,
        Field(ge=1, description="a node may carry this many times the mean load before its sessions go elsewhere"),
    ] = 1.25
    family_gain: Annotated[
        Share, Field(description="a tuned variant is preferred where its KL is below this share of the plain one's")
    ] = 0.95
    batch_share: Annotated[Share, Field(description="share of a server's slots batch may fill")] = 0.75
    queue_depth: Annotated[
        float, Field(ge=0, description="requests waiting for each slot; a server with more takes none")
    ] = 8.0
    service_ms: Annotated[Milliseconds, Field(description="ms a request holds a slot, until that was measured")] = 500.0
    token_ms: Annotated[Milliseconds, Field(description="ms a generated token takes, until that was measured")] = 20.0
    degrade: Annotated[
        bool, Field(description="whether a smaller variant may answer, marked, while the NVLink pool is unreachable")
    ] = True
    alternatives: Annotated[int, Field(ge=0, description="endpoints named besides the chosen one, for retries")] = 4


def parse_policy(text: str, name: str) -> Policy:
    """Return a policy written in YAML; raises CatalogError, which names the key."""
    return parse_yaml(text, Policy, name)
