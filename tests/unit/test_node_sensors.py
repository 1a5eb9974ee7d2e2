"""The machine as a node sees it: shares of processors, limits of memory, and what cannot be measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.serving.node import sensors
from pipeline.serving.node.sensors import Sensors, Ticks, share, ticks
from tests.support import vcgencmd

STAT = "cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"


@pytest.mark.parametrize("stat", ["", "cpu", "cpu 1 2 3", "cpu0 1 1 1 1 1 1 1 1 1 1", "cpu a b c d e f g h i j"])
def test_what_is_no_statistic_is_none(stat: str) -> None:
    """Other text than the kernel's gives no figure."""
    assert ticks(stat) is None


def test_the_share_is_of_the_time_between_two_looks() -> None:
    """Time spent waiting for disks is idle; guests' time is counted once; a clock that stood gives no share."""
    assert ticks(STAT) == Ticks(idle=800, total=1000)
    assert share(Ticks(800, 1000), Ticks(850, 1200)) == 0.75
    assert share(Ticks(800, 1000), Ticks(800, 1000)) is None
    assert share(None, Ticks(1, 2)) is None
    assert share(Ticks(800, 1000), Ticks(790, 1100)) == 1.0  # iowait may run back (proc_stat(5))


def test_a_raspberry_pi_tells_how_it_fares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temperature and flags are the board's; the first look has no share yet to tell."""
    vcgencmd.install(tmp_path, vcgencmd.recorded(), monkeypatch)
    seen = Sensors(vcgencmd.PI5)
    reading = seen.look()
    assert reading.cpu is None
    assert reading.conditions.temperature_c is not None
    assert reading == seen.reading


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        pytest.param({}, 1 << 30, id="nothing is known"),
        pytest.param({"proc/meminfo": "MemTotal:        8000 kB\n"}, 8_192_000, id="the machine's"),
        pytest.param(
            {"proc/meminfo": "MemTotal: 8000 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 8_192_000, id="no limit"
        ),
        pytest.param(
            {"proc/meminfo": "MemTotal: 8000 kB\n", "sys/fs/cgroup/memory.max": "4096000\n"}, 4_096_000, id="container"
        ),
        pytest.param(
            {
                "proc/meminfo": "MemTotal: 8000 kB\n",
                "proc/self/cgroup": "0::/system.slice/node.service\n",
                "sys/fs/cgroup/system.slice/node.service/memory.max": "1024000\n",
            },
            1_024_000,
            id="systemd unit",
        ),
    ],
)
def test_memory_is_the_least_that_is_known(
    files: dict[str, str], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control group's limit counts where there is one."""
    vcgencmd.remove(tmp_path / "nothing", monkeypatch)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sensors.memory(tmp_path) == wanted
