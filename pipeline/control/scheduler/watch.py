"""The cluster's nodes, as the API tells of them: listed, then each change as it happens.

Rules: a look that fails leaves what was known; what was not heard of for STALE_S is not believed. A model stays on the
node where a server of it was started, as long as the server's pod is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from pipeline.control.scheduler import nodes
from pipeline.control.scheduler.nodes import Node
from pipeline.control.scheduler.pods import POOL
from pipeline.errors import PipelineError
from pipeline.ports.kube import NODE, POD, Change, Kind, Object

STALE_S = 60.0
WATCH_S = 20  # seconds after which the API says at least that nothing changed

T = TypeVar("T")


class Watched(Protocol):
    """What is asked of a cluster."""

    def watch(self, kind: Kind, *, labels: str = "", seconds: int = 30) -> Iterator[list[Change]]:
        """Yield all objects at once, then what changes."""
        ...


@dataclass
class Nodes:
    """What is known of nodes; `clock` gives seconds that never run back, `at` is when nodes were last heard of."""

    cluster: Watched
    clock: Callable[[], float]
    found: Mapping[str, Node] = field(default_factory=dict)
    at: float | None = None
    problem: str | None = None
    _plain: dict[str, Node] = field(default_factory=dict)
    _models: dict[str, set[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def follow_nodes(self, ended: threading.Event) -> None:
        """Follow nodes until changes were missed, or until it ended; whatever goes wrong is in `problem`."""
        known: dict[str, Node] = {}
        for changes in self._watched(NODE, ""):
            for change in changes:
                _note(known, change, nodes.parse)
            with self._lock:
                self._plain, self.at, self.problem = dict(known), self.clock(), None
                self._join()
            if ended.is_set():
                return

    def follow_pods(self, ended: threading.Event) -> None:
        """Follow the pods of servers likewise."""
        known: dict[str, tuple[str, str] | None] = {}
        for changes in self._watched(POD, POOL):
            for change in changes:
                _note(known, change, nodes.held)
            with self._lock:
                self._models = {}
                for node, digest in filter(None, known.values()):
                    self._models.setdefault(node, set()).add(digest)
                self._join()
            if ended.is_set():
                return

    def _watched(self, kind: Kind, labels: str) -> Iterator[list[Change]]:
        try:
            yield from self.cluster.watch(kind, labels=labels, seconds=WATCH_S)
        except PipelineError as e:
            self.problem = e.message

    def _join(self) -> None:
        there = {name: self._plain[name] for name in self._models if name in self._plain}
        joined = {name: replace(node, models=node.models | self._models[name]) for name, node in there.items()}
        self.found = {**self._plain, **joined}

    @property
    def age(self) -> float | None:
        """Seconds since nodes were last heard of; None before they were."""
        return None if self.at is None else self.clock() - self.at

    @property
    def doubt(self) -> str | None:
        """Why what is known is not to be believed; None where it is."""
        if self.age is None:
            return self.problem or "the cluster's nodes were not listed yet"
        if self.age > STALE_S:
            return f"the cluster's nodes were last heard of over {STALE_S:.0f} s ago"
        return None


def _note(known: dict[str, T], change: Change, parse: Callable[[Object], T]) -> None:
    meta = change.object["metadata"]
    key = f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])
    if change.gone:
        known.pop(key, None)
    else:
        known[key] = parse(change.object)
