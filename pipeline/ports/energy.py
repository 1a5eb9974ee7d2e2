"""Joules of a run, where the machine can tell; never an estimate.

Rules: a source that fails once in a run tells nothing of that run; what a source leaves out is said here and is not
made up for. The whole machine is measured, not the process: what it draws when idle is included.

pmic    Raspberry Pi 5: `vcgencmd pmic_read_adc`, current times voltage summed over the rails that have both, integrated
        by the trapezoid rule. The input, EXT5V, has only a voltage, so the sum leaves out the conversion's loss and
        what hangs on 5 V: USB, fan, HATs, NVMe. Beside a USB-C power meter the board drew about 1.15 times the sum
        plus 0.6 W (https://github.com/jfikar/RPi5-power). One reading takes the firmware about 23 ms
        (https://github.com/ml-energy/zeus/issues/273).
rapl    x86: the energy counters of the processor packages and their memory, in microjoules; leaves out power supply,
        disks, network and GPUs (https://docs.kernel.org/power/powercap/powercap.html). Most systems let only root
        read them.
nvml    NVIDIA GPUs since Volta: the counter of the GPU with its board, in millijoules
        (https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any

from pipeline.errors import ToolError
from pipeline.ports import machine, nvml, sysfs, vcgencmd
from pipeline.ports.integrate import Counter, Joules, Power, by_source
from pipeline.ports.machine import Conditions

INTERVAL_S = 0.1
MICRO, MILLI = 1e-6, 1e-3
_RAIL = re.compile(r"\s*(\S{1,64})_([AV])\s+(?:current|volt)\([0-9]{1,4}\)=([0-9]{1,6}(?:\.[0-9]{1,12})?)([AV])\s*")


@dataclass(frozen=True)
class Metered:
    """What a run took, and how the machine fared in it.

    `joules` is the sum over `sources` (sorted); None where nothing could tell, or a GPU that was asked for could not.
    `longest_gap_s` is between two samples: power that changes faster is not resolved. `throttled` holds the flags
    raised in the run, `throttling_sources` what told of them at every sample: without one, no flag means nothing.
    """

    seconds: float
    joules: float | None
    sources: tuple[str, ...]
    samples: int
    longest_gap_s: float
    temperature_max_c: float | None
    throttled: tuple[str, ...]
    throttling_sources: tuple[str, ...]


class Meter:
    """Measures the block it is the context of; `result` is there afterwards.

    Args:
        gpus: UUIDs of the GPUs the run uses; without any, NVML is left alone.
        interval_s: seconds between samples, taken in a thread of their own.
        clock: seconds, never going back.
        api: the module `pynvml`, or one like it.
    """

    def __init__(
        self,
        *,
        gpus: Sequence[str] = (),
        interval_s: float = INTERVAL_S,
        root: Path = machine.ROOT,
        clock: Callable[[], float] = time.monotonic,
        api: Any = None,
    ) -> None:
        if interval_s <= 0:
            raise ValueError(f"an interval of {interval_s} s")
        self._gpus, self._interval_s, self._root, self._clock, self._api = tuple(gpus), interval_s, root, clock, api
        self._meters: list[Joules] = []
        self._times: list[float] = []
        self._conditions: list[Conditions] = []
        self._result: Metered | None = None

    @property
    def result(self) -> Metered:
        """What the block took; raises RuntimeError before its end."""
        if self._result is None:
            raise RuntimeError("the run is not over")
        return self._result

    def __enter__(self) -> Meter:
        with ExitStack() as stack:
            self._meters = [*_pmic(), *_rapl(self._root), *_nvml(self._gpus, stack, self._api)]
            self._sample()
            self._stop = Event()
            self._thread = Thread(target=self._keep_sampling, name="meter", daemon=True)
            self._thread.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            self._stop.set()
            self._thread.join()
            self._sample()
        self._result = self._summary()

    def _keep_sampling(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        now = self._clock()
        self._times.append(now)
        for meter in self._meters:
            meter.add(now)
        self._conditions.append(machine.conditions(self._root))

    def _summary(self) -> Metered:
        told = {source: total for source, total in by_source(self._meters).items() if total is not None}
        complete = bool(told) and ("nvml" in told or not self._gpus)
        temperatures = [c.temperature_c for c in self._conditions if c.temperature_c is not None]
        return Metered(
            seconds=self._times[-1] - self._times[0],
            joules=sum(told.values()) if complete else None,
            sources=tuple(sorted(told)),
            samples=len(self._times),
            longest_gap_s=max(after - before for before, after in pairwise(self._times)),
            temperature_max_c=max(temperatures, default=None),
            throttled=machine.throttled_during(self._conditions[0], self._conditions),
            throttling_sources=tuple(sorted(set.intersection(*(set(c.sources) for c in self._conditions)))),
        )


def rails(answer: str) -> dict[str, float]:
    """Return the watts of each rail of `pmic_read_adc` that has current and voltage, by name, sorted.

    A rail has two lines, `VDD_CORE_A current(7)=1.19A` and `VDD_CORE_V volt(15)=0.72V`; the numbers in brackets are the
    converter's channels and do not match.
    """
    read: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for line in answer.splitlines():
        found = _RAIL.fullmatch(line)
        if found and found[2] == found[4]:
            read[found[2]][found[1]] = float(found[3])
    return {name: read["A"][name] * read["V"][name] for name in sorted(read["A"].keys() & read["V"].keys())}


def _pmic() -> Iterator[Joules]:
    if _pmic_watts() is not None:
        yield Power("pmic", _pmic_watts)


def _pmic_watts() -> float | None:
    found = rails(vcgencmd.ask("pmic_read_adc") or "")
    return sum(found.values()) if found else None


def _rapl(root: Path) -> Iterator[Joules]:
    # Zones lie side by side: intel-rapl:0 is package-0, intel-rapl:0:0 and so on are its parts. A package holds cores
    # and graphics but not its memory (dram); psys holds the packages, so that it would count them twice.
    for name in sysfs.paths(root, "sys/class/powercap/intel-rapl:*/name"):
        if (sysfs.text(name) or "").startswith(("package-", "dram")):
            counter = partial(sysfs.number, name.with_name("energy_uj"))
            yield Counter("rapl", counter, MICRO, sysfs.number(name.with_name("max_energy_range_uj")))


def _nvml(gpus: Sequence[str], stack: ExitStack, api: Any) -> Iterator[Joules]:
    if not gpus:
        return
    session = None
    with suppress(ToolError):  # a broken driver tells nothing; whoever needs the GPU meets the error itself
        session = stack.enter_context(nvml.session(api))
    if session is not None:
        for uuid in gpus:
            yield Counter("nvml", partial(session.millijoules, uuid), MILLI)
