"""Figures in Prometheus's text format, and rates of counters between two looks.

Rules: what is not there, or no finite number, is unknown, not zero; a counter that fell was started anew; a rate needs
two looks, the earlier at least half of the wanted time ago.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite

Labels = Mapping[str, str]
Samples = Mapping[str, list[tuple[Labels, float]]]
_LOOKS = 64


def parse(text: str) -> Samples:
    """Return samples by name; raises ValueError where the text is none of the format."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if isfinite(sample.value):
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(samples: Samples, name: str) -> float | None:
    """Return the only sample of a name; None where there is none, or more than one."""
    found = samples.get(name, [])
    return found[0][1] if len(found) == 1 else None


def whole(samples: Samples, name: str) -> int | None:
    """Return the only sample of a name as a count."""
    found = value(samples, name)
    return None if found is None else int(found)


@dataclass
class Rates:
    """The counters of one server, as they were at the last looks; the clock's seconds never run back."""

    seconds: float
    _looks: deque[tuple[float, Samples]] = field(default_factory=lambda: deque(maxlen=_LOOKS))

    def look(self, at: float, samples: Samples) -> None:
        """Remember a look, and forget those that are older than is needed."""
        self._looks.append((at, samples))
        while len(self._looks) > 2 and at - self._looks[1][0] >= self.seconds:
            self._looks.popleft()

    def by(self, name: str, label: str, where: Callable[[Labels], bool] = lambda _: True) -> dict[str, float] | None:
        """Return the increase a second by a label's values; None before there is one."""
        if len(self._looks) < 2:
            return None
        (then, before), (now, after) = self._looks[0], self._looks[-1]
        if now - then < self.seconds / 2:
            return None
        was = dict(_rows(before, name))
        found: dict[str, float] = {}
        for key, count in _rows(after, name):
            labels, earlier = dict(key), was.get(key, 0.0)
            if where(labels):
                more = count - earlier if count >= earlier else count
                found[labels.get(label, "")] = found.get(labels.get(label, ""), 0.0) + more / (now - then)
        return found

    def total(self, name: str, where: Callable[[Labels], bool] = lambda _: True) -> float | None:
        """Return the increase a second of all samples of a name; None before there is one."""
        found = self.by(name, "", where)
        return None if found is None else sum(found.values())


def _rows(samples: Samples, name: str) -> Iterator[tuple[frozenset[tuple[str, str]], float]]:
    for labels, count in samples.get(name, []):
        yield frozenset(labels.items()), count
