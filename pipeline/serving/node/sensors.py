"""How the machine fares: processors in use, temperature, what holds it back; and how much memory there is.

Rules: what cannot be measured is None; figures are of the last seconds, taken beside the requests and never for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.ports import machine, nvml, sysfs
from pipeline.ports.machine import Conditions

ROOT = Path("/")
UNKNOWN = Conditions(None)
_IDLE = (3, 4)  # fields of /proc/stat's `cpu` line that count idle time: idle, iowait (proc_stat(5))
_FIELDS = 8  # those behind are contained in the first two


@dataclass(frozen=True)
class Ticks:
    """Time of all processors since boot, idle and in all."""

    idle: int
    total: int


@dataclass(frozen=True)
class Reading:
    """One look at the machine; `cpu` is the share of all processors in use since the look before."""

    cpu: float | None = None
    conditions: Conditions = UNKNOWN
    gpus: tuple[nvml.Use, ...] = ()


def ticks(stat: str) -> Ticks | None:
    """Return the times in `/proc/stat`, None where there are none."""
    fields = stat.partition("\n")[0].split()
    if not fields or fields[0] != "cpu" or not all(f.isdecimal() for f in fields[1:]) or len(fields) <= _FIELDS:
        return None
    times = [int(f) for f in fields[1 : _FIELDS + 1]]
    return Ticks(sum(times[i] for i in _IDLE), sum(times))


def share(before: Ticks | None, after: Ticks | None) -> float | None:
    """Return the share of all processors in use between two looks."""
    if before is None or after is None or after.total <= before.total:
        return None
    return min(1.0, max(0.0, 1 - (after.idle - before.idle) / (after.total - before.total)))


class Sensors:
    """Looks at the machine again and again; `reading` is what the last look saw."""

    def __init__(self, root: Path = ROOT) -> None:
        """Take the first look at the processors."""
        self._root = root
        self._ticks = ticks(sysfs.text(root / "proc/stat") or "")
        self.reading = Reading()

    def look(self) -> Reading:
        """Take a look; it may ask the firmware, so call it beside the event loop."""
        now = ticks(sysfs.text(self._root / "proc/stat") or "")
        self.reading = Reading(share(self._ticks, now), machine.conditions(self._root), _gpus())
        self._ticks = now
        return self.reading


def _gpus() -> tuple[nvml.Use, ...]:
    try:
        return nvml.uses()
    except ToolError:  # the model's server says what is wrong with the driver
        return ()


def memory(root: Path = ROOT) -> int:
    """Return the bytes of memory there are for this process: the machine's, or its control group's where that is less.

    Without either, 1 GiB: little enough for whatever this is.
    """
    known = [sysfs.number(path) for path in (root / "sys/fs/cgroup/memory.max", *_own_group(root))]
    of_machine = machine.facts(root).get("memory_bytes")
    known.append(int(of_machine) if of_machine else None)
    return min((bytes_ for bytes_ in known if bytes_), default=1 << 30)


def _own_group(root: Path) -> list[Path]:
    line = (sysfs.text(root / "proc/self/cgroup") or "").rpartition("0::/")[2].strip()
    return [root / "sys/fs/cgroup" / line / "memory.max"] if line and ".." not in line else []
