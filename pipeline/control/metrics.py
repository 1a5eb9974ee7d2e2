"""The controller's figures for Prometheus, and for the autoscalers that act on them.

Rules: names and labels are fixed or of the settings; a follower tells of no replicas, so that one figure stands for a
pool; what is unknown is absent.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipeline.control.act import Did, Outcome
from pipeline.control.memory import Memory, Mode
from pipeline.control.state import State

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Set once a round."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._registry = r = CollectorRegistry()
        self._desired = Gauge("edge_controller_desired_replicas", "Replicas a pool is to have", ["pool"], registry=r)
        self._expected = Gauge("edge_controller_expected_qps", "Requests/s to be ready for", ["pool"], registry=r)
        self._mode = Gauge("edge_controller_mode", "1 for a gateway's mode", ["gateway", "mode"], registry=r)
        self._actions = Counter("edge_controller_actions", "Actions done", ["kind", "reason"], registry=r)
        self._undone = Counter("edge_controller_undone", "Actions not done", ["kind", "outcome"], registry=r)
        self._leader = Gauge("edge_controller_leader", "1 while this one acts", registry=r)
        self._unknown = Gauge("edge_controller_unanswered", "Questions without an answer in the last round", registry=r)
        self._rounds = Counter("edge_controller_rounds", "Rounds", registry=r)
        self.decision = Histogram("edge_controller_decision_seconds", "To decide", buckets=_SECONDS, registry=r)
        self.look = Histogram("edge_controller_look_seconds", "To look at the fleet", buckets=_SECONDS, registry=r)

    def follows(self, unanswered: int) -> None:
        """Set the figures of one that does not lead."""
        self._rounds.inc()
        self._leader.set(0)
        self._unknown.set(unanswered)
        for gauge in (self._desired, self._expected, self._mode):
            gauge.clear()

    def leads(self, state: State, memory: Memory, did: list[Did], unanswered: int) -> None:
        """Set the figures after a round."""
        self.follows(unanswered)
        self._leader.set(1)
        for name, pool in memory.pools.items():
            self._desired.labels(name).set(pool.wanted)
        for expected in state.expected:
            self._expected.labels(expected.pool).set(expected.qps)
        for name, gateway in memory.gateways.items():
            for mode in Mode:
                self._mode.labels(name, mode).set(gateway.mode is mode)
        for done in did:
            if done.outcome is Outcome.DONE:
                self._actions.labels(done.action.kind, done.action.reason).inc()
            else:
                self._undone.labels(done.action.kind, done.outcome).inc()

    def text(self) -> bytes:
        """Return the figures in Prometheus' text format."""
        return generate_latest(self._registry)
