"""How long a request would wait at an endpoint, and how long it would take there, in milliseconds.

Rules: `load` is the requests an endpoint holds; estimates by what was measured, else by the policy's assumptions; a
server decodes `slots` requests at once and its queue drains at that rate (the mean wait of an M/D/c queue would be
shorter: this errs towards the other pool).
"""

from __future__ import annotations

from pipeline.peers.policy import Policy
from pipeline.serving.decision import Request
from pipeline.serving.snapshot import Endpoint


def slots(endpoint: Endpoint) -> int:
    """Return how many requests an endpoint decodes at once, at least one."""
    return max(endpoint.slots, 1)


def wait_ms(endpoint: Endpoint, load: int, policy: Policy) -> float:
    """Return the expected time until a new request gets a slot."""
    ahead = load - slots(endpoint) + 1
    if ahead <= 0:
        return 0.0
    service = policy.service_ms if endpoint.service_ms is None else endpoint.service_ms
    return ahead * service / slots(endpoint)


def work_ms(endpoint: Endpoint, request: Request, policy: Policy) -> float:
    """Return the expected time from the request's start in a slot to the end of its answer, with the way there."""
    token = policy.token_ms if endpoint.token_ms is None else endpoint.token_ms
    return endpoint.round_trip_ms + token * (request.max_tokens or policy.assumed_tokens)


def is_free_for_batch(endpoint: Endpoint, load: int, policy: Policy) -> bool:
    """Return whether batch may use a slot: some are kept for interactive requests, a lone one must be idle."""
    return load < max(slots(endpoint) * policy.batch_share, 1)
