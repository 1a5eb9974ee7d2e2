"""`gateway.yaml`: endpoints, policy, limits, and how hard the gateway tries.

Rules: every number has its unit and reason here; a file without a key gets the default, one with an unknown key is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipeline.catalog.document import Document, parse_yaml
from pipeline.errors import CatalogError
from pipeline.peers.policy import Policy
from pipeline.peers.status import STATUS_PATH, Pool

Seconds = Annotated[float, Field(gt=0, le=86400)]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}")


class EndpointEntry(Document):
    """One server."""

    name: Annotated[
        str, Field(description="shown in headers, logs and metrics; letters, digits, '.', '_', ':' and '-', at most 63")
    ]
    url: Annotated[str, Field(description="address that requests are sent below")]
    pool: Annotated[Pool, Field(description="`edge` or `nvlink`: what it is believed to be, whatever it says")]
    status: Annotated[str | None, Field(description="where its state is asked; none: at `/status` below `url`")] = None

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a name has letters, digits, '.', '_', ':' and '-', at most 63")
        return name

    @field_validator("url", "status")
    @classmethod
    def _http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise ValueError("an address starts with http:// or https:// and names a host, without a user")
        return url

    @property
    def base(self) -> str:
        """The address requests are sent below."""
        return self.url.rstrip("/")

    @property
    def status_url(self) -> str:
        """The address of its state."""
        return self.status or self.base + STATUS_PATH


class Limits(Document):
    """Bounds on what clients and servers may use up."""

    body_bytes: Annotated[int, Field(ge=1, description="bytes of a request's body; a long chat has some 100 KB")] = (
        1 << 20
    )
    header_bytes: Annotated[int, Field(ge=1, description="bytes of a request's headers together")] = 16 << 10
    body_s: Annotated[Seconds, Field(description="s a client may take to send its body")] = 10.0
    answer_bytes: Annotated[int, Field(ge=1, description="bytes read of one answer; more is no answer")] = 16 << 20
    event_bytes: Annotated[int, Field(ge=1, description="bytes of one event of a stream")] = 1 << 20
    in_flight: Annotated[int, Field(ge=1, description="requests at work at once; more wait")] = 512
    waiting: Annotated[int, Field(ge=0, description="requests that wait for a place; more are refused")] = 256
    wait_s: Annotated[Seconds, Field(description="s a request waits for a place")] = 10.0
    connect_s: Annotated[Seconds, Field(description="s until an endpoint must have taken a connection")] = 2.0
    first_s: Annotated[Seconds, Field(description="s until an endpoint must have begun a streamed answer")] = 30.0
    chunk_s: Annotated[Seconds, Field(description="s between two pieces of a streamed answer; then it is dead")] = 10.0
    answer_s: Annotated[Seconds, Field(description="s for a whole answer")] = 300.0
    drain_s: Annotated[Seconds, Field(description="s that requests under way get after SIGTERM")] = 30.0
    ready_s: Annotated[
        float, Field(ge=0, description="s between saying 'not ready' and closing the door, for balancers to notice")
    ] = 2.0


class Effort(Document):
    """How hard the gateway tries before it gives up on a request."""

    attempts: Annotated[int, Field(ge=1, description="endpoints tried before the first token")] = 4
    continuations: Annotated[int, Field(ge=0, description="times an answer that broke off is continued elsewhere")] = 3
    hedge_quantile: Annotated[
        float,
        Field(gt=0, lt=1, description="of recent times to the first token; slower than that is asked elsewhere too"),
    ] = 0.95
    hedge_budget: Annotated[
        float, Field(ge=0, le=1, description="share of requests that may be asked twice, so that slowness adds no load")
    ] = 0.05
    hedge_after: Annotated[int, Field(ge=1, description="answers seen before a quantile means anything")] = 20
    circuit_failures: Annotated[int, Field(ge=1, description="failures in a row that open an endpoint's circuit")] = 3
    circuit_pause_s: Annotated[Seconds, Field(description="s until an open circuit lets one request through")] = 1.0
    circuit_longest_s: Annotated[Seconds, Field(description="s the pause grows to, doubling with failed probes")] = 30.0


class Settings(Document):
    """`gateway.yaml`."""

    schema_version: Literal[1] = 1
    endpoints: list[EndpointEntry] = Field(default_factory=list)
    policy: Policy = Field(default_factory=Policy)
    limits: Limits = Field(default_factory=Limits)
    effort: Effort = Field(default_factory=Effort)
    poll_s: Annotated[Seconds, Field(description="s between two looks at an endpoint's state")] = 1.0
    release_s: Annotated[Seconds, Field(description="s between two looks at the channel")] = 15.0
    grace_s: Annotated[Seconds, Field(description="s that servers may stay on the release before")] = 600.0

    @model_validator(mode="after")
    def _distinct(self) -> Settings:
        names = [e.name for e in self.endpoints]
        if len(set(names)) != len(names):
            raise ValueError("two endpoints have the same name")
        return self


def parse_settings(text: str, name: str) -> Settings:
    """Return the settings written in YAML; raises CatalogError, which names the key."""
    return parse_yaml(text, Settings, name)


def with_endpoints(settings: Settings, edge: Sequence[str], nvlink: Sequence[str]) -> Settings:
    """Return settings with the endpoints of flags added, each named by its host and port.

    Raises:
        CatalogError: an address is none, stands twice, or there is no endpoint at all.
    """
    given = [(url, pool) for urls, pool in ((edge, Pool.EDGE), (nvlink, Pool.NVLINK)) for url in urls]
    try:
        added = [EndpointEntry(name=urlsplit(url).netloc, url=url, pool=pool) for url, pool in given]
        found = Settings.model_validate({**dict(settings), "endpoints": [*settings.endpoints, *added]})
    except ValueError as e:
        raise CatalogError(
            f"the endpoints cannot be used: {e}", hint="give addresses such as http://pi-1:8080, each once"
        ) from e
    if not found.endpoints:
        raise CatalogError("no endpoint is named", hint="give --edge URL, --nvlink URL, or --config FILE")
    return found
