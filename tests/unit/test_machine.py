"""What a machine says of itself is read from recorded boards, and anything else it may say breaks nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ports import cpuinfo, machine, sysfs, vcgencmd
from pipeline.ports.machine import Conditions, throttled_during
from tests.support.trees import plant
from tests.support.vcgencmd import MACHINES, PI5, install, recorded, remove

ZONE, DEVICE = "sys/class/thermal/thermal_zone{}/temp", "sys/class/thermal/cooling_device{}/{}"
X86 = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9654 96-Core Processor\n\nprocessor\t: 1\n"
BIG_LITTLE = "CPU implementer\t: 0x41\nCPU part\t: 0xd05\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"


def uname(arch: str = "aarch64") -> os.uname_result:
    return os.uname_result(("Linux", "a-host-name", "6.6.51+rpt-rpi-2712", "#1 SMP", arch))


def test_a_pi_5_tells_board_processor_firmware_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Raspberry Pi 5 is described by plain facts, sorted, without its serial number or the host's name."""
    install(tmp_path, recorded(), monkeypatch)
    found = machine.facts(PI5, uname)
    assert found == {
        "board": "Raspberry Pi 5 Model B Rev 1.0",
        "bootloader": "2025/03/10 17:10:37 version 2bb2ae640058a2f3aa8dcbdc2da33302e509668d (release)",
        "cores": "4",
        "cpu": "Cortex-A76",
        "firmware": "2024/09/23 14:02:56 version 26826259 (release) (embedded)",
        "frequency_max_khz": "2400000",
        "governor": "performance",
        "kernel": "6.6.51+rpt-rpi-2712",
        "machine": "aarch64",
        "memory_bytes": "8450424832",
        "system": "Linux",
    }
    assert list(found) == sorted(found)
    assert machine.is_pi5(found)
    assert not machine.is_riscv64(found)


def test_a_riscv_board_tells_its_isa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A RISC-V board is described with its ISA string."""
    remove(tmp_path, monkeypatch)
    found = machine.facts(MACHINES / "bpi-f3", lambda: uname("riscv64"))
    assert (found["cpu"], found["board"], found["cores"]) == ("Spacemit(R) X60", "spacemit k1-x deb1 board", "8")
    assert found["isa"].startswith("rv64imafdcv_")
    assert machine.is_riscv64(found)
    assert not machine.is_pi5(found)


def test_an_empty_root_gives_the_kernel_and_an_unknown_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be read, what is left out is left out, and the gate still finds its keys."""
    remove(tmp_path, monkeypatch)
    assert machine.facts(tmp_path, uname) == {
        "cpu": "unknown",
        "kernel": "6.6.51+rpt-rpi-2712",
        "machine": "aarch64",
        "system": "Linux",
    }


def test_this_machine_has_the_facts_evidence_needs() -> None:
    """On the machine the tests run on, processor, kernel, machine and system are there, all of them one line."""
    found = machine.facts()
    assert {"cpu", "kernel", "machine", "system"} <= set(found)
    assert all(value and value.isprintable() for value in found.values())


@pytest.mark.parametrize(
    ("text", "name", "cores"),
    [
        pytest.param(X86, "AMD EPYC 9654 96-Core Processor", 2, id="x86"),
        pytest.param(BIG_LITTLE, "Cortex-A55 + Cortex-A76", 0, id="two kinds of cores"),
        pytest.param("CPU implementer : 0x41\nCPU part : 0xfff\n", "implementer 0x41 part 0xfff", 0, id="unknown part"),
        pytest.param("CPU implementer : 0x48\nCPU part : 0xd0b\n", "implementer 0x48 part 0xd0b", 0, id="not Arm's"),
        pytest.param("CPU part : 0xd0b\n", None, 0, id="part without implementer"),
        pytest.param("CPU implementer : zero\nCPU part : 0x\n", None, 0, id="no numbers"),
        pytest.param("uarch : sifive,u74-mc\nisa : rv64imafdc\n", "sifive,u74-mc", 0, id="riscv without model name"),
        pytest.param("model name :\n", None, 0, id="empty name"),
        pytest.param("", None, 0, id="nothing"),
    ],
)
def test_processors_are_named(text: str, name: str | None, cores: int) -> None:
    """Each architecture's way of naming its processor is understood."""
    found = cpuinfo.parse(text)
    assert (found.name, found.cores) == (name, cores)


@pytest.mark.parametrize(
    ("board", "arch", "expected"),
    [
        ("Raspberry Pi 5 Model B Rev 1.1", "aarch64", True),
        ("Raspberry Pi 500 Rev 1.0", "aarch64", False),
        ("Raspberry Pi Compute Module 5 Rev 1.0", "aarch64", False),
        ("Raspberry Pi 4 Model B Rev 1.5", "aarch64", False),
        ("Raspberry Pi 5 Model B Rev 1.0", "x86_64", False),
        ("", "aarch64", False),
    ],
)
def test_a_pi_5_is_told_from_its_relatives(board: str, arch: str, expected: bool) -> None:
    """Only the board itself is a Pi 5."""
    assert machine.is_pi5({"board": board, "machine": arch}) is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"machine": "riscv64", "isa": "rv64imafdcv", "cpu": "Spacemit(R) X60"}, True),
        ({"machine": "riscv64", "isa": "rv64imafdcv", "cpu": "qemu"}, False),
        ({"machine": "riscv64", "isa": "rv64imafdcv", "board": "riscv-virtio,qemu"}, False),
        ({"machine": "riscv64", "cpu": "AMD EPYC"}, False),
        ({"machine": "riscv64", "isa": "rv32imac"}, False),
        ({"machine": "x86_64", "isa": "rv64imafdcv"}, False),
    ],
    ids=["board", "qemu user mode", "qemu system", "the host shines through", "32 bits", "another machine"],
)
def test_an_emulated_machine_is_no_riscv_board(found: dict[str, str], expected: bool) -> None:
    """What says it is emulated does not pass for a board."""
    assert machine.is_riscv64(found) is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            "2024/09/23 14:02:56 \nCopyright (c) 2012 Broadcom\nversion 1 (release)",
            "2024/09/23 14:02:56 version 1 (release)",
        ),
        ("version 1 (release)", "version 1 (release)"),
        ("2024/09/23 14:02:56", "2024/09/23 14:02:56"),
        ("", ""),
    ],
)
def test_firmware_is_date_and_version(answer: str, expected: str) -> None:
    """Of a firmware's answer its date and version are kept."""
    assert machine.firmware(answer) == expected


@pytest.mark.parametrize(
    ("answer", "now", "since_boot"),
    [
        ("throttled=0x0", (), ()),
        ("throttled=0x50005", ("throttled", "under-voltage"), ("throttled", "under-voltage")),
        ("throttled=0x20002", ("frequency-capped",), ("frequency-capped",)),
        ("throttled=0x80008", ("soft-temperature-limit",), ("soft-temperature-limit",)),
        ("throttled=0xe0000", (), ("frequency-capped", "soft-temperature-limit", "throttled")),
    ],
)
def test_flags_of_the_firmware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, now: tuple[str, ...], since_boot: tuple[str, ...]
) -> None:
    """The firmware's word is told apart into what is now and what has been since boot."""
    install(tmp_path, {"get_throttled": answer + "\n"}, monkeypatch)
    assert machine.conditions(PI5) == Conditions(52.35, now, since_boot, ("vcgencmd",))


def test_without_the_program_the_kernel_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `vcgencmd` the firmware's word comes from sysfs, where it has no 0x."""
    remove(tmp_path, monkeypatch)
    word = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"
    found = machine.conditions(plant(tmp_path, {word: "50005\n"}))
    assert found.throttled_now == found.throttled_since_boot == ("throttled", "under-voltage")
    assert found.sources == ("get_throttled",)


@pytest.mark.parametrize(("alarm", "now"), [("0\n", ()), ("1\n", ("under-voltage",))])
def test_a_voltage_alarm_stands_in_for_the_firmware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alarm: str, now: tuple[str, ...]
) -> None:
    """Where the firmware's word cannot be had at all, the kernel's alarm tells of under-voltage."""
    remove(tmp_path, monkeypatch)
    files = {"sys/class/hwmon/hwmon0/name": "cpu_thermal\n", "sys/class/hwmon/hwmon2/name": "rpi_volt\n"}
    found = machine.conditions(plant(tmp_path, files | {"sys/class/hwmon/hwmon2/in0_lcrit_alarm": alarm}))
    assert (found.throttled_now, found.sources) == (now, ("rpi_volt",))


def test_a_firmware_that_may_not_be_asked_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without access to the firmware gets no word, so the next source is named, not the program."""
    install(tmp_path, recorded(), monkeypatch).refuse()
    assert vcgencmd.ask("get_throttled") is None
    assert machine.conditions(PI5).sources == ("rpi_volt",)


def test_a_command_the_firmware_lacks_has_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program prints for an unknown command is no answer."""
    install(tmp_path, {}, monkeypatch)
    assert vcgencmd.ask("get_throttled") is None


@pytest.mark.parametrize(
    ("kind", "state", "now", "sources"),
    [
        ("cpufreq-cpu0", "2", ("frequency-capped",), ("cooling",)),
        ("cpufreq-cpu0", "0", (), ("cooling",)),
        ("thermal-cpufreq-0", "1", ("frequency-capped",), ("cooling",)),
        ("Processor", "3", ("frequency-capped",), ("cooling",)),
        ("intel_powerclamp", "-1", (), ("cooling",)),
        ("pwm-fan", "3", (), ()),
        ("LCD", "40", (), ()),
        ("cpufreq-cpu0", "hot", (), ()),
    ],
)
def test_only_what_slows_the_processor_down_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    state: str,
    now: tuple[str, ...],
    sources: tuple[str, ...],
) -> None:
    """A cooling device that lowers the frequency is throttling; a turning fan and a dim screen are not."""
    remove(tmp_path, monkeypatch)
    plant(tmp_path, {DEVICE.format(0, "type"): kind + "\n", DEVICE.format(0, "cur_state"): state + "\n"})
    found = machine.conditions(tmp_path)
    assert (found.throttled_now, found.sources) == (now, sources)


def test_the_hottest_plausible_zone_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temperature is of the hottest zone; a sensor that is off or absurd is none."""
    remove(tmp_path, monkeypatch)
    temperatures = ["41000", "63500", "-274000", "511000", ""]
    plant(tmp_path, {ZONE.format(i): text + "\n" for i, text in enumerate(temperatures)})
    assert machine.conditions(tmp_path) == Conditions(63.5)


def test_a_machine_without_sensors_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any sensor nothing is claimed, and no source is named."""
    remove(tmp_path, monkeypatch)
    assert machine.conditions(tmp_path) == Conditions(None)


def test_there_are_no_other_flags() -> None:
    """Conditions cannot hold a flag that nobody would look for."""
    with pytest.raises(ValueError, match="no such flags: hot"):
        Conditions(50.0, throttled_now=("hot",))


CALM = Conditions(50.0)
CAPPED = Conditions(80.0, ("frequency-capped",), ("frequency-capped",))
HAS_BEEN = Conditions(50.0, (), ("frequency-capped",))


@pytest.mark.parametrize(
    ("before", "samples", "raised"),
    [
        pytest.param(CALM, [CALM, CALM], (), id="calm"),
        pytest.param(CALM, [CALM, CAPPED, HAS_BEEN], ("frequency-capped",), id="seen while active"),
        pytest.param(CALM, [CALM, HAS_BEEN], ("frequency-capped",), id="between two samples"),
        pytest.param(HAS_BEEN, [HAS_BEEN, HAS_BEEN], (), id="before the run only"),
        pytest.param(HAS_BEEN, [HAS_BEEN, CAPPED], ("frequency-capped",), id="again, seen while active"),
        pytest.param(CAPPED, [HAS_BEEN], ("frequency-capped",), id="when the run began"),
        pytest.param(CALM, [], (), id="no samples"),
    ],
)
def test_throttled_during_a_run(before: Conditions, samples: list[Conditions], raised: tuple[str, ...]) -> None:
    """A run was throttled where a flag was active in it, or is newly among those since boot."""
    assert throttled_during(before, samples) == raised


@given(st.text())
def test_any_cpuinfo_is_read(text: str) -> None:
    """Whatever stands in /proc/cpuinfo gives a name or none."""
    found = cpuinfo.parse(text)
    assert found.name is None or found.name
    assert found.cores >= 0


@given(st.text())
def test_any_answer_of_the_firmware_is_read(text: str) -> None:
    """Whatever the firmware prints gives bits or none, and one line or none."""
    word = machine.throttled_word(text)
    assert word is None or 0 <= word < 1 << 32
    assert "\n" not in machine.firmware(text)


FACT_FILES = [
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/device-tree/model",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq",
    "sys/devices/platform/soc/soc:firmware/get_throttled",
    "sys/class/hwmon/hwmon0/name",
    "sys/class/hwmon/hwmon0/in0_lcrit_alarm",
    ZONE.format(0),
    DEVICE.format(0, "type"),
    DEVICE.format(0, "cur_state"),
]


@settings(max_examples=50)  # files are written: their time is not the parser's
@given(st.lists(st.binary(max_size=60), min_size=len(FACT_FILES), max_size=len(FACT_FILES)))
def test_any_tree_gives_facts_of_one_line(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    """Whatever bytes the kernel's files hold, facts are printable single lines and conditions are sound."""
    root = plant(tmp_path_factory.mktemp("root"), dict(zip(FACT_FILES, contents, strict=True)))
    assert all(value and value.isprintable() for value in machine.facts(root, uname).values())
    assert set(machine.conditions(root).throttled_now) <= set(machine.FLAGS)


def test_folders_and_absent_files_are_no_numbers(tmp_path: Path) -> None:
    """What is no readable file has neither text nor number."""
    assert sysfs.text(tmp_path) is None
    assert sysfs.number(tmp_path / "absent") is None
    assert sysfs.number(plant(tmp_path, {"n": "12 3"}) / "n") is None
    assert sysfs.paths(tmp_path / "absent", "*") == []
