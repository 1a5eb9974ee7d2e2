"""What is asked of routing and what it answers; both are frozen, every reason is one of a bounded set.

What each request makes several of are named tuples: one is made in a fifth of a frozen dataclass's time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from pipeline.peers.status import Pool


class Hint(StrEnum):
    """The size of model a client asks for."""

    AUTO = "auto"
    TINY = "tiny"
    MID = "mid"
    LARGE = "large"


class Priority(StrEnum):
    """Who goes first; batch takes what interactive leaves."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Counted(StrEnum):
    """How a prompt's tokens were counted: by the variant's tokenizer, or bounded by its bytes."""

    TOKENIZER = "tokenizer"
    BYTES = "bytes"


class Reason(StrEnum):
    """Why a request went where it went; a label of metrics and the header `x-edge-reason`."""

    TINY_EDGE = "tiny_edge"  # the prompt fits, the nearest edge node takes it
    AFFINITY = "affinity"  # as above, the node that holds the session's prefix
    FAMILY = "family"  # as above, a variant tuned to the request's family
    SENSITIVE = "sensitive"  # never leaves the edge
    PINNED = "pinned"  # the request names a variant
    CORE_FAR = "core_far"  # the edge is busy, the core is too far away
    CORE_DOWN = "core_down"  # the edge is busy, the NVLink pool unreachable
    QUEUE_WAIT = "queue_wait"  # the edge's queue is too long
    CPU = "cpu"  # the edge's processors are too busy
    DEADLINE = "deadline"  # the edge cannot answer in time
    NOT_LOADED = "not_loaded"  # no edge node has the variant loaded
    BATCH = "batch"
    LONG_GENERATION = "long_generation"
    LONG_PROMPT = "long_prompt"
    HINT = "hint"  # the client asks for the large tier
    DEGRADED = "degraded"  # the NVLink pool is unreachable, a smaller variant answers
    RETRY = "retry"  # another endpoint failed before its first token
    HEDGE = "hedge"  # another endpoint was slow to begin
    CONTINUED = "continued"  # another endpoint failed in the middle of its answer


class Denied(StrEnum):
    """Why a request is refused before anything is tried."""

    NO_ENDPOINT = "no_endpoint"  # nothing serves a variant of the release
    NO_EDGE = "no_edge"  # sensitive, and no edge node is there
    NO_VARIANT = "no_variant"  # the variant it names is served nowhere
    TOO_LONG = "too_long"  # prompt and answer exceed every context
    DEADLINE = "deadline"  # no endpoint can answer in time
    OVERLOADED = "overloaded"  # every queue is full
    BATCH_YIELDS = "batch_yields"  # the slots batch may use are taken
    CORE_DOWN = "core_down"  # the NVLink pool is unreachable and a smaller answer is not allowed


@dataclass(frozen=True, slots=True)
class Request:
    """What routing knows of a request: numbers and names, never its text.

    `deadline_ms` is how long the client waits for the whole answer; `affinity` a key of the session or prefix;
    `variant` the one it must be answered by; `excluded` are endpoints that failed it before.
    """

    prompt_tokens: int
    max_tokens: int | None = None
    hint: Hint = Hint.AUTO
    family: str | None = None
    sensitive: bool = False
    priority: Priority = Priority.INTERACTIVE
    deadline_ms: float | None = None
    affinity: str | None = None
    variant: str | None = None
    excluded: frozenset[str] = frozenset()
    counted: Counted = Counted.TOKENIZER


class Choice(NamedTuple):
    """One endpoint with what it serves; `degraded` where that is a smaller variant than the request calls for."""

    pool: Pool
    endpoint: str
    variant: str
    digest: str
    degraded: bool = False


class Decision(NamedTuple):
    """Where a request goes and why; `alternatives` are tried in their order, each allowed by the same rules."""

    choice: Choice
    reason: Reason
    counted: Counted
    policy: int
    alternatives: tuple[Choice, ...] = ()

    @property
    def pool(self) -> Pool:
        return self.choice.pool

    @property
    def endpoint(self) -> str:
        return self.choice.endpoint

    @property
    def variant(self) -> str:
        return self.choice.variant

    def why(self, taken: Choice, instead: Reason | None) -> Reason:
        """Return why one of the choices answered: `instead` of the first one, if that did not."""
        if taken.degraded and not self.choice.degraded:
            return Reason.DEGRADED
        return instead or self.reason


@dataclass(frozen=True, slots=True)
class Declined:
    """A request that is refused early; `retry_after_s` where it may be repeated with a chance, in whole seconds."""

    reason: Denied
    retry_after_s: int | None = None

    @property
    def status(self) -> int:
        """The HTTP status: 400 what can never work, 429 where load is the reason, 503 where servers are missing."""
        if self.reason is Denied.TOO_LONG:
            return 400
        busy = {Denied.DEADLINE, Denied.OVERLOADED, Denied.BATCH_YIELDS}
        return 429 if self.reason in busy and self.retry_after_s is not None else 503


def continuing(decision: Decision, digest: str) -> tuple[Choice, ...]:
    """Return a decision's choices in the order to continue an answer in: the same model file before any other."""
    return tuple(sorted((decision.choice, *decision.alternatives), key=lambda c: c.digest != digest))
