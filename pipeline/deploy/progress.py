"""A rollout's state in the cluster, and the lock that lets one deploy at a time work on it.

Rules: what is decided is stored before it is done, on the version it was decided from; a lock is a Lease, which whoever
was killed loses after its duration; times of other machines are not compared with this one's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.deploy.canary import Phase, Progress
from pipeline.errors import ConflictError
from pipeline.manifest.encoding import decode
from pipeline.ports.kube import CONFIG_MAP, Cluster, Object
from pipeline.ports.lease import Hold

NAME = "rollout"
_STATE, _BEFORE, _AFTER = "progress.json", "before.json", "after.json"


@dataclass
class Store:
    """The ConfigMap `rollout`: how far it is, the objects that were there before, and those that are to be."""

    cluster: Cluster
    namespace: str
    _object: Object | None = None

    def load(self) -> Progress | None:
        """Return the last rollout; raises TrustError where somebody damaged it."""
        self._object = self.cluster.find(CONFIG_MAP, NAME, self.namespace)
        text = self._data.get(_STATE)
        return decode(text.encode(), Progress, NAME) if text else None

    @property
    def before(self) -> list[Object]:
        """The objects that are brought back when it fails."""
        return self._documents(_BEFORE)

    @property
    def after(self) -> list[Object]:
        """The objects of the last rollout."""
        return self._documents(_AFTER)

    def begin(self, progress: Progress, before: Sequence[Object], after: Sequence[Object]) -> None:
        """Store a new rollout."""
        self._save({_STATE: _text(progress), _BEFORE: json.dumps(list(before)), _AFTER: json.dumps(list(after))})

    def turn(self, progress: Progress) -> None:
        """Store how far a rollout is now; once it is rolled back, the objects before are those that are to be."""
        data = {**self._data, _STATE: _text(progress)}
        if progress.phase is Phase.FAILED and self.before:
            data[_AFTER] = data[_BEFORE]
        self._save(data)

    @property
    def _data(self) -> dict[str, str]:
        return dict((self._object or {}).get("data") or {})

    def _documents(self, name: str) -> list[Object]:
        found: list[Object] = json.loads(self._data.get(name) or "[]")
        return found

    def _save(self, data: dict[str, str]) -> None:
        if self._object is None:
            meta = {"name": NAME, "namespace": self.namespace}
            saved = self.cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})
        else:
            saved = self.cluster.replace({**self._object, "data": data})
        if saved is None:
            raise ConflictError("another deploy changed this rollout", hint="look at it, then run the command again")
        self._object = saved


def _text(progress: Progress) -> str:
    return progress.encode().decode()


class Lock:
    """One deploy's hold on the Lease `rollout`; `clock` gives seconds that never run back."""

    def __init__(self, cluster: Cluster, namespace: str, holder: str, clock: Callable[[], float], seconds: int) -> None:
        """Hold nothing yet; a hold lasts `seconds` without being renewed."""
        self._hold = Hold(cluster, namespace, NAME, holder, seconds, clock)
        self._renewed = 0.0

    def take(self) -> str | None:
        """Return None once the lock is held, else who holds it; ask again until then."""
        other = self._hold.take()
        if other is None:
            self._renewed = self._hold.clock()
        return other

    def renew(self) -> None:
        """Hold on; raises ConflictError where somebody else took over."""
        if self._hold.clock() - self._renewed < self._hold.seconds / 3:
            return
        if self.take() is not None:
            raise ConflictError("another deploy took over", hint="it goes on there; look at what it says")

    def give(self) -> None:
        """Let go."""
        self._hold.give()
