"""Joules are measured where a machine can tell, and never guessed."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ports import energy, process, vcgencmd
from pipeline.ports.energy import Meter
from pipeline.ports.integrate import Counter, Power, by_source
from tests.support.nvml import FakeGpu, FakeNvml
from tests.support.trees import plant
from tests.support.vcgencmd import PI5, Program, install, recorded, remove

# Summed with awk over the twelve rails of the recorded answer that have a current and a voltage.
WATTS = 7.239819
ZONE = "sys/class/powercap/{}/{}"


def feed(values: list[int | None]) -> Callable[[], int | None]:
    return partial(next, iter(values))


def ticking() -> Callable[[], float]:
    """A clock that goes a second further each time it is looked at."""
    return partial(next, itertools.count(1000.0))


def rapl(root: Path, zones: dict[str, tuple[str, int]], range_uj: int = 10_000_000) -> Path:
    for zone, (name, microjoules) in zones.items():
        files = {"name": f"{name}\n", "energy_uj": f"{microjoules}\n", "max_energy_range_uj": f"{range_uj}\n"}
        plant(root, {ZONE.format(zone, file): text for file, text in files.items()})
    return root


@pytest.fixture
def pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    return install(tmp_path, recorded(), monkeypatch)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root on a machine without vcgencmd."""
    remove(tmp_path / "bin", monkeypatch)
    return tmp_path


def test_rails_are_current_times_voltage() -> None:
    """The twelve rails with current and voltage give watts; the input and the battery, with a voltage only, do not."""
    found = energy.rails(recorded()["pmic_read_adc"])
    assert found["VDD_CORE"] == pytest.approx(6.22421 * 0.861733)
    assert len(found) == 12
    assert not {"EXT5V", "BATT"} & set(found)
    assert sum(found.values()) == pytest.approx(WATTS, abs=1e-3)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "VDD_CORE_A current(7)=1.19A",
        "VDD_CORE_V volt(15)=0.72V",
        "VDD_CORE_A current(7)=1.19V\nVDD_CORE_V volt(15)=0.72V",
        "VDD_CORE_A current(7)=nanA\nVDD_CORE_V volt(15)=0.72V",
        "VDD_CORE_A current(7)=-1.19A\nVDD_CORE_V volt(15)=0.72V",
    ],
    ids=["nothing", "current only", "voltage only", "wrong unit", "not a number", "negative"],
)
def test_half_a_rail_is_no_rail(answer: str) -> None:
    """A rail of which something is missing or odd is left out."""
    assert energy.rails(answer) == {}


def test_a_pi_is_metered_at_its_power_chip(pi: Program) -> None:
    """Constant watts over the seconds of the clock are the joules, whatever the number of samples."""
    with Meter(root=PI5, clock=ticking(), interval_s=0.01) as meter:
        pi.wait("pmic_read_adc", 5)
    found = meter.result
    assert found.samples >= 4  # the first reading finds out whether there are any
    assert found.seconds == found.samples - 1
    assert found.joules == pytest.approx(WATTS * found.seconds, rel=1e-3)
    assert (found.sources, found.longest_gap_s, found.temperature_max_c) == (("pmic",), 1.0, 52.35)
    assert (found.throttled, found.throttling_sources) == ((), ("vcgencmd",))


def test_a_run_that_was_throttled_is_known(pi: Program) -> None:
    """A flag raised in the run is in its result, also when it is over before the run is."""
    with Meter(root=PI5, interval_s=60) as meter:
        pi.answer("get_throttled", "throttled=0x60000\n")
    assert meter.result.throttled == ("frequency-capped", "throttled")


def test_flags_of_before_the_run_do_not_count(pi: Program) -> None:
    """What happened since boot but before the run is not the run's."""
    pi.answer("get_throttled", "throttled=0x60000\n")
    with Meter(root=PI5, interval_s=60) as meter:
        pass
    assert meter.result.throttled == ()


def test_a_reading_that_fails_makes_the_whole_unknown(pi: Program) -> None:
    """A source that failed once says nothing of the run, and flags are then known from a weaker source or none."""
    with Meter(root=PI5, interval_s=60) as meter:
        pi.refuse()
    assert (meter.result.joules, meter.result.sources, meter.result.throttling_sources) == (None, (), ())


def test_an_older_pi_has_no_power_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the firmware does not know the command nothing is measured, and nothing is estimated."""
    install(tmp_path, {"get_throttled": "throttled=0x0\n"}, monkeypatch)
    with Meter(root=tmp_path, interval_s=60) as meter:
        pass
    assert (meter.result.joules, meter.result.sources) == (None, ())
    assert meter.result.throttling_sources == ("vcgencmd",)


def test_a_machine_that_cannot_tell_says_none(root: Path) -> None:
    """Without any source there are no joules, and the run is timed all the same."""
    with Meter(root=root, clock=ticking(), interval_s=60) as meter:
        pass
    found = meter.result
    assert (found.joules, found.sources, found.seconds, found.samples) == (None, (), 1.0, 2)
    assert (found.temperature_max_c, found.throttling_sources) == (None, ())


def test_packages_and_their_memory_are_added(root: Path) -> None:
    """RAPL's packages and memory count; parts of a package, the platform and the copy behind MMIO do not count twice."""
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    rapl(root, {zone: (name, 100) for zone, name in zones.items()})
    with Meter(root=root, interval_s=60) as meter:
        rapl(root, {zone: (name, 1_000_100) for zone, name in zones.items()})
    assert meter.result.joules == pytest.approx(3.0)
    assert meter.result.sources == ("rapl",)


def test_a_counter_that_goes_around_is_followed(root: Path) -> None:
    """RAPL's counter starts again at its range."""
    rapl(root, {"intel-rapl:0": ("package-0", 9_000_000)})
    with Meter(root=root, interval_s=60) as meter:
        rapl(root, {"intel-rapl:0": ("package-0", 2_000_000)})
    assert meter.result.joules == pytest.approx(3.0)


def test_counters_only_root_may_read_tell_nothing(root: Path) -> None:
    """A package whose counter is closed to this user makes RAPL unknown."""
    rapl(root, {"intel-rapl:0": ("package-0", 1), "intel-rapl:1": ("package-1", 1)})
    (root / ZONE.format("intel-rapl:1", "energy_uj")).unlink()
    with Meter(root=root, interval_s=60) as meter:
        pass
    assert (meter.result.joules, meter.result.sources) == (None, ())


def test_gpus_are_added_to_the_processor(root: Path) -> None:
    """The GPUs a run uses count beside the processor, others do not, and NVML is closed afterwards."""
    rapl(root, {"intel-rapl:0": ("package-0", 0)})
    api = FakeNvml([FakeGpu("A", millijoules=[1000, 5000]), FakeGpu("B", millijoules=[0, 9000]), FakeGpu("C")])
    with Meter(root=root, interval_s=60, gpus=["A", "B"], api=api) as meter:
        rapl(root, {"intel-rapl:0": ("package-0", 2_000_000)})
    assert meter.result.joules == pytest.approx(4 + 9 + 2)
    assert meter.result.sources == ("nvml", "rapl")
    assert api.opened == 0


@pytest.mark.parametrize(
    "api",
    [
        FakeNvml([FakeGpu("A", millijoules=None)]),
        FakeNvml([FakeGpu("B", millijoules=[1, 2])]),
        FakeNvml([FakeGpu("A", millijoules=[2000, 1000])]),
        FakeNvml([], fails=FakeNvml.NVML_ERROR_LIBRARY_NOT_FOUND),
        FakeNvml([], fails=FakeNvml.NVML_ERROR_DRIVER_NOT_LOADED),
    ],
    ids=["older than Volta", "no such GPU", "reset meanwhile", "no driver", "broken driver"],
)
def test_a_gpu_that_cannot_tell_leaves_no_sum(root: Path, api: FakeNvml) -> None:
    """Where a GPU that the run uses cannot tell, the processor's share is not passed off as the whole."""
    rapl(root, {"intel-rapl:0": ("package-0", 0)})
    with Meter(root=root, interval_s=60, gpus=["A"], api=api) as meter:
        pass
    assert (meter.result.joules, meter.result.sources) == (None, ("rapl",))
    assert api.opened == 0


def test_without_gpus_nvml_is_left_alone(root: Path) -> None:
    """A run on the processor does not even open NVML."""
    api = FakeNvml([FakeGpu("A", millijoules=[0, 1])])
    with Meter(root=root, interval_s=60, api=api) as meter:
        pass
    assert (api.opens, meter.result.joules) == (0, None)


def test_a_run_that_fails_is_still_measured(pi: Program) -> None:
    """An error in the run passes through, and the result is there."""
    with suppress(ZeroDivisionError), Meter(root=PI5, clock=ticking(), interval_s=60) as meter:
        raise ZeroDivisionError
    assert meter.result.joules == pytest.approx(WATTS, rel=1e-3)


def test_a_result_comes_with_the_end() -> None:
    """There is no result of a run that is not over, and no meter without an interval."""
    with pytest.raises(RuntimeError, match="not over"):
        _ = Meter().result
    with pytest.raises(ValueError, match="interval"):
        Meter(interval_s=0)


def test_the_ports_load_with_the_base_install() -> None:
    """Facts, conditions and energy need neither torch nor numpy nor NVML."""
    code = "import sys; from pipeline.ports import energy, machine; print(*sys.modules)"
    loaded = process.run([sys.executable, "-c", code], hint="", env={"PYTHONPATH": str(Path(__file__).parents[2])})
    assert not {"torch", "numpy", "pynvml", "llama_cpp"} & set(loaded.split())


def test_power_is_integrated_by_the_trapezoid_rule() -> None:
    """Each stretch counts with the mean of its two ends."""
    power = Power("p", partial(next, iter([1.0, 3.0, 3.0])))
    for at in (10.0, 12.0, 12.5):
        power.add(at)
    assert power.joules == pytest.approx((1 + 3) / 2 * 2 + 3 * 0.5)


@pytest.mark.parametrize(
    ("readings", "wraps_at", "expected"),
    [
        ([5, 5], None, 0),
        ([5, 7, 12], None, 7),
        ([90, 10, 50], 100, 60),
        ([90, 10], None, None),
        ([90, 10], 50, None),
        ([90, None, 100], 100, None),
        ([None, 1], None, None),
    ],
    ids=["still", "rising", "around", "set back", "around a range it was above", "a gap", "never there"],
)
def test_counters_add_up(readings: list[int | None], wraps_at: int | None, expected: float | None) -> None:
    """A counter's gain is what it rose by, around its range if it has one; after a gap it is unknown."""
    counter = Counter("c", feed(readings), 1.0, wraps_at)
    for at in range(len(readings)):
        counter.add(at)
    assert counter.joules == expected


@given(st.lists(st.integers(0, 99), min_size=1), st.integers(0, 99))
def test_a_wrapping_counter_loses_nothing(steps: list[int], start: int) -> None:
    """Whatever a counter gained, at most once around between two readings, is found again."""
    counts = [total % 100 for total in itertools.accumulate(steps, initial=start)]
    counter = Counter("c", feed(list(counts)), 1.0, 100)
    for at in range(len(counts)):
        counter.add(at)
    assert counter.joules == sum(steps)


def test_one_unknown_part_makes_its_source_unknown() -> None:
    """Parts of a source are added, and known only together."""
    parts = [
        SimpleNamespace(source=s, joules=j, add=None) for s, j in (("a", 1.0), ("a", 2.0), ("b", 1.0), ("b", None))
    ]
    assert by_source(parts) == {"a": 3.0, "b": None}


@given(st.text())
def test_any_answer_of_the_power_chip_is_read(text: str) -> None:
    """Whatever the firmware prints gives finite watts or none."""
    assert all(0 <= watts < float("inf") for watts in energy.rails(text).values())


def _lines() -> Iterator[st.SearchStrategy[str]]:
    name = st.sampled_from(["VDD_CORE", "EXT5V", "", "_", "A B"])
    value = st.one_of(st.floats().map(str), st.integers().map(str), st.text(max_size=5))
    for kind, word in (("A", "current"), ("V", "volt"), ("W", "watt")):
        yield st.builds(lambda n, v, k=kind, w=word: f"{n}_{k} {w}(7)={v}{k}", name, value)


@given(st.lists(st.one_of(*_lines())).map("\n".join))
def test_odd_lines_of_the_power_chip_are_ignored(text: str) -> None:
    """Lines that look like rails and hold odd numbers give finite watts or none."""
    assert all(0 <= watts < float("inf") for watts in energy.rails(text).values())


def test_the_program_is_asked_for_the_power_chip(pi: Program) -> None:
    """The recorded answer arrives as it was recorded."""
    assert vcgencmd.ask("pmic_read_adc") == recorded()["pmic_read_adc"].strip()
