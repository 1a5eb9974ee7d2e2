"""The machine this runs on: facts for evidence, and how it fares.

Rules: the base install alone is needed; a fact that cannot be read is left out, never guessed; nothing names the user,
the host or a serial number. Whether it is hot, short of power or slowed down is said with the sensors that told so.

Flags of `vcgencmd get_throttled`, bit 0 to 3 now, 16 to 19 since boot
(https://www.raspberrypi.com/documentation/computers/os.html#get_throttled):

under-voltage            the supply is below 4.63 V
frequency-capped         the cores run below the frequency they were set to
throttled                the cores are throttled
soft-temperature-limit   the soft limit of temperature is reached
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.ports import cpuinfo, sysfs, vcgencmd

ROOT = Path("/")
FLAGS = ("under-voltage", "frequency-capped", "throttled", "soft-temperature-limit")
FREQUENCY_CAPPED = FLAGS[1]
SINCE_BOOT = 16  # bits a flag's "has occurred" stands above its "now"
# Types of cooling devices that slow the processor down. Others must not count: a fan's state is above 0 whenever it
# turns (pwm-fan of the Pi 5), as is a backlight's. Names: drivers/thermal/cpufreq_cooling.c, cpuidle_cooling.c,
# intel/intel_powerclamp.c, drivers/acpi/processor_driver.c in Linux.
SLOWING = ("cpufreq", "thermal-cpufreq-", "idle-", "thermal-idle-", "Processor", "intel_powerclamp")
PLAUSIBLE_MILLIDEGREES = range(-50_000, 200_000)
MAX_FACT = 1000  # characters; ISA strings have some hundred
_WORD = re.compile(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})")


@dataclass(frozen=True)
class Conditions:
    """How the machine fares at one moment.

    `temperature_c` is of the hottest zone, None without a sensor. Flags are sorted names of `FLAGS`. `sources` says
    what told of them, sorted (`vcgencmd`, `get_throttled`, `rpi_volt`, `cooling`): without one, no flag means nothing.
    """

    temperature_c: float | None
    throttled_now: tuple[str, ...] = ()
    throttled_since_boot: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for a flag that there is not."""
        if unknown := {*self.throttled_now, *self.throttled_since_boot} - set(FLAGS):
            raise ValueError(f"no such flags: {', '.join(sorted(unknown))}")


def facts(root: Path = ROOT, uname: Callable[[], os.uname_result] = os.uname) -> dict[str, str]:
    """Return plain facts, sorted by key.

    Always there: `cpu` (or `unknown`), `kernel`, `machine`, `system`. Where known: `isa` (RISC-V), `board`, `cores`
    (logical), `memory_bytes`, `governor`, `frequency_max_khz` (the highest of all cores), `firmware` and `bootloader`
    (Raspberry Pi).
    """
    cpu, name = cpuinfo.parse(sysfs.text(root / "proc/cpuinfo") or ""), uname()
    found = {
        "cpu": cpu.name or "unknown",
        "isa": cpu.isa,
        "board": sysfs.text(root / "proc/device-tree/model"),
        "cores": str(cpu.cores or ""),
        "memory_bytes": _memory(sysfs.text(root / "proc/meminfo") or ""),
        "kernel": name.release,
        "machine": name.machine,
        "system": name.sysname,
        "governor": _governors(root),
        "frequency_max_khz": _frequency(root),
        "firmware": firmware(vcgencmd.ask("version") or ""),
        "bootloader": firmware(vcgencmd.ask("bootloader_version") or ""),
    }
    return {key: clean for key, value in sorted(found.items()) if (clean := _clean(value or ""))}


def is_pi5(found: Mapping[str, str]) -> bool:
    """Whether facts are of a Raspberry Pi 5 itself (not of a Pi 500 or a Compute Module 5, which cool otherwise)."""
    board = found.get("board", "")
    return re.match(r"Raspberry Pi 5\b", board) is not None and found.get("machine") == "aarch64"


def is_riscv64(found: Mapping[str, str]) -> bool:
    """Whether facts are of a 64-bit RISC-V machine that does not say it is emulated (QEMU names itself)."""
    told = f"{found.get('cpu', '')} {found.get('board', '')}".lower()
    return found.get("machine") == "riscv64" and found.get("isa", "").startswith("rv64") and "qemu" not in told


def conditions(root: Path = ROOT) -> Conditions:
    """Return how the machine fares now.

    The firmware's word is asked for with `vcgencmd`, else read from sysfs, where the kernel clears the since-boot bits
    each time it polls (every 2 s; drivers/hwmon/raspberrypi-hwmon.c); without either, the alarm of `rpi_volt` stands
    for under-voltage in the last 2 s. On any board a cooling device that slows the processor down counts as
    `frequency-capped`.
    """
    word, source = _firmware_word(root)
    alarm = _voltage_alarm(root) if word is None else None
    slowing = _slowing(root)
    now = set(flags(word or 0)) | ({FLAGS[0]} if alarm else set()) | ({FREQUENCY_CAPPED} if any(slowing) else set())
    told = {source: word is not None, "rpi_volt": alarm is not None, "cooling": bool(slowing)}
    return Conditions(
        temperature_c=_temperature(root),
        throttled_now=tuple(sorted(now)),
        throttled_since_boot=flags((word or 0) >> SINCE_BOOT),
        sources=tuple(sorted(name for name, answered in told.items() if answered)),
    )


def throttled_during(before: Conditions, samples: Iterable[Conditions]) -> tuple[str, ...]:
    """Return the flags that were raised in a run, sorted.

    These are the flags active at any sample, the one before the run included, and those that are new in a since-boot
    set: they were raised between two samples. A flag that was in `before`'s since-boot set is seen only while active.
    """
    raised, earlier = set(before.throttled_now), set(before.throttled_since_boot)
    for sample in samples:
        raised |= set(sample.throttled_now) | (set(sample.throttled_since_boot) - earlier)
    return tuple(sorted(raised))


def throttled_word(answer: str) -> int | None:
    """Return the bits of `throttled=0x50000` or, as sysfs writes it, `50000`."""
    found = _WORD.fullmatch(answer.strip())
    return int(found[1], 16) if found else None


def flags(bits: int) -> tuple[str, ...]:
    """Return the names of the four lowest bits that are set, sorted."""
    return tuple(sorted(name for bit, name in enumerate(FLAGS) if bits >> bit & 1))


def firmware(answer: str) -> str:
    """Return date and version of a firmware's answer in one line.

    The answer is a date, on some boards a line of copyright, and `version <hash> (release) ...`; what follows is the
    date again, as a number, and when it was flashed.
    """
    lines = [line.strip() for line in answer.splitlines()]
    version = next((line for line in lines if line.startswith("version ")), "")
    return f"{lines[0]} {version}".strip() if lines and version != lines[0] else version


def _firmware_word(root: Path) -> tuple[int | None, str]:
    if (word := throttled_word(vcgencmd.ask("get_throttled") or "")) is not None:
        return word, "vcgencmd"
    for path in sysfs.paths(root, "sys/devices/platform/soc*/*firmware/get_throttled"):
        if (word := throttled_word(sysfs.text(path) or "")) is not None:
            return word, "get_throttled"
    return None, "get_throttled"


def _voltage_alarm(root: Path) -> bool | None:
    for name in sysfs.paths(root, "sys/class/hwmon/hwmon*/name"):
        alarm = sysfs.number(name.with_name("in0_lcrit_alarm"))
        if sysfs.text(name) == "rpi_volt" and alarm is not None:
            return alarm > 0
    return None


def _slowing(root: Path) -> list[bool]:
    return [
        state > 0
        for kind in sysfs.paths(root, "sys/class/thermal/cooling_device*/type")
        if (sysfs.text(kind) or "").startswith(SLOWING)
        and (state := sysfs.number(kind.with_name("cur_state"))) is not None
    ]


def _temperature(root: Path) -> float | None:
    zones = [sysfs.number(path) for path in sysfs.paths(root, "sys/class/thermal/thermal_zone*/temp")]
    return max((zone / 1000 for zone in zones if zone is not None and zone in PLAUSIBLE_MILLIDEGREES), default=None)


def _memory(meminfo: str) -> str | None:
    found = re.search(r"^MemTotal:\s+([0-9]{1,15}) kB\s*$", meminfo, re.MULTILINE)
    return str(int(found[1]) * 1024) if found else None


def _governors(root: Path) -> str:
    policies = sysfs.paths(root, "sys/devices/system/cpu/cpufreq/policy*/scaling_governor")
    return " + ".join(sorted({name for path in policies if (name := sysfs.text(path))}))


def _frequency(root: Path) -> str:
    policies = sysfs.paths(root, "sys/devices/system/cpu/cpufreq/policy*/cpuinfo_max_freq")
    return str(max((khz for path in policies if (khz := sysfs.number(path))), default=""))


def _clean(value: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in value[:MAX_FACT]).split())
