"""NVIDIA GPUs and the NVLinks between them, through the driver's management library (package `nvidia-ml-py`).

Rules: no driver means no GPUs; a driver that is there and broken is a ToolError; a figure that this GPU, driver or
partition (MIG) does not give is left out. Serial numbers and UUIDs stay out of `facts`.

Source: https://docs.nvidia.com/deploy/nvml-api/; names of paths between GPUs: the legend of `nvidia-smi topo -m`.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ToolError

DRIVER = Path("/proc/driver/nvidia/version")
NVSWITCH = "NVSwitch"
UNKNOWN = "unknown"
SELF = "X"
ACTIVE = 1  # nvmlEnableState_t
# nvmlNvlinkVersion_t
VERSIONS = {1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0", 8: "6.0"}
# nvmlGpuTopologyLevel_t; two GPUs on one board (0) meet at one bridge
PATHS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
# nvmlValueType_t: the member of the union that holds a field's value
MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


@dataclass(frozen=True)
class Link:
    """An active NVLink: its number on its GPU, version, raw speed in MB/s a direction, and who is at the other end.

    `peer` is the PCI bus id of a GPU, `NVSwitch`, or `unknown`.
    """

    index: int
    version: str
    mb_per_s: int | None
    peer: str


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver sees it; versions are of driver and CUDA, `mig` is whether it is partitioned."""

    index: int
    name: str
    uuid: str
    pci_bus_id: str
    memory_bytes: int | None
    driver: str
    cuda: str | None
    compute_capability: str | None
    power_limit_w: float | None
    mig: bool
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Use:
    """How much of a GPU is in use: bytes free and in all, and how many of its NVLinks are active."""

    index: int
    free_bytes: int | None
    memory_bytes: int | None
    links: int


class Session:
    """The library while it is initialised."""

    def __init__(self, api: Any) -> None:
        self._api = api

    def gpus(self) -> tuple[Gpu, ...]:
        """Return the GPUs in the driver's order, which is that of PCI bus ids."""
        return tuple(self._gpu(index) for index in range(self._api.nvmlDeviceGetCount()))

    def uses(self) -> tuple[Use, ...]:
        """Return how much of each GPU is in use, in the driver's order."""
        return tuple(self._use(index) for index in range(self._api.nvmlDeviceGetCount()))

    def topology(self, gpus: Sequence[Gpu]) -> tuple[tuple[str, ...], ...]:
        """Return the path between each pair of GPUs: `X`, `NV<links>`, `PIX`, `PXB`, `PHB`, `NODE`, `SYS` or `unknown`.

        GPUs that reach an NVSwitch are taken to reach each other through it.
        """
        return tuple(tuple(self._path(one, other) for other in gpus) for one in gpus)

    def millijoules(self, uuid: str) -> int | None:
        """Return what a GPU has drawn since its driver was loaded, None where it does not say."""
        handle = self._maybe("nvmlDeviceGetHandleByUUID", uuid)
        drawn = None if handle is None else self._maybe("nvmlDeviceGetTotalEnergyConsumption", handle)
        return None if drawn is None else int(drawn)

    def _gpu(self, index: int) -> Gpu:
        call, maybe = self._api, self._maybe
        handle = call.nvmlDeviceGetHandleByIndex(index)
        cuda = maybe("nvmlSystemGetCudaDriverVersion_v2")
        capability = maybe("nvmlDeviceGetCudaComputeCapability", handle)
        limit = maybe("nvmlDeviceGetEnforcedPowerLimit", handle)
        memory = maybe("nvmlDeviceGetMemoryInfo", handle)
        mig = maybe("nvmlDeviceGetMigMode", handle)
        return Gpu(
            index=index,
            name=_text(call.nvmlDeviceGetName(handle)),
            uuid=_text(call.nvmlDeviceGetUUID(handle)),
            pci_bus_id=_bus_id(call.nvmlDeviceGetPciInfo(handle)),
            memory_bytes=None if memory is None else int(memory.total),
            driver=_text(call.nvmlSystemGetDriverVersion()),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
            compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
            power_limit_w=limit / 1000 if limit else None,
            mig=bool(mig and mig[0]),
            links=tuple(self._links(handle)),
        )

    def _use(self, index: int) -> Use:
        handle = self._api.nvmlDeviceGetHandleByIndex(index)
        memory = self._maybe("nvmlDeviceGetMemoryInfo", handle)
        free, total = (None, None) if memory is None else (int(memory.free), int(memory.total))
        return Use(index, free, total, sum(1 for _ in self._active(handle)))

    def _active(self, handle: Any) -> Iterator[int]:
        for link in range(self._api.NVML_NVLINK_MAX_LINKS):
            if self._maybe("nvmlDeviceGetNvLinkState", handle, link) == ACTIVE:
                yield link

    def _links(self, handle: Any) -> Iterator[Link]:
        for link in self._active(handle):
            version = self._maybe("nvmlDeviceGetNvLinkVersion", handle, link)
            yield Link(link, VERSIONS.get(version, UNKNOWN), self._speed(handle, link), self._peer(handle, link))

    def _speed(self, handle: Any, link: int) -> int | None:
        fields = self._maybe("nvmlDeviceGetFieldValues", handle, [(self._api.NVML_FI_DEV_NVLINK_GET_SPEED, link)])
        if not fields or fields[0].nvmlReturn != 0 or not 0 <= fields[0].valueType < len(MEMBERS):
            return None
        return int(getattr(fields[0].value, MEMBERS[fields[0].valueType])) or None

    def _peer(self, handle: Any, link: int) -> str:
        kind = self._maybe("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link)
        if kind == self._api.NVML_NVLINK_DEVICE_TYPE_SWITCH:
            return NVSWITCH
        remote = self._maybe("nvmlDeviceGetNvLinkRemotePciInfo", handle, link)  # calls ..._v2
        return UNKNOWN if remote is None else _bus_id(remote)

    def _path(self, one: Gpu, other: Gpu) -> str:
        if one.index == other.index:
            return SELF
        if links := _links_between(one, other):
            return f"NV{links}"
        handles = [self._api.nvmlDeviceGetHandleByIndex(gpu.index) for gpu in (one, other)]
        return PATHS.get(self._maybe("nvmlDeviceGetTopologyCommonAncestor", *handles), UNKNOWN)

    def _maybe(self, function: str, *args: Any) -> Any:
        """Return an answer, None where this GPU, driver or partition has none."""
        try:
            return getattr(self._api, function)(*args)
        except self._api.NVMLError:
            return None


@contextmanager
def session(api: Any = None) -> Iterator[Session | None]:
    """Yield the library, initialised until the block ends; None where there is no driver.

    Args:
        api: the module `pynvml`, or one like it.

    Raises:
        ToolError: the driver is there but broken, or there and `nvidia-ml-py` is not installed.
    """
    call = api if api is not None else _module()
    if call is None:
        yield None
        return
    try:
        call.nvmlInit()
    except call.NVMLError as e:
        if e.value != call.NVML_ERROR_LIBRARY_NOT_FOUND:
            raise _broken(e) from e
        yield None
        return
    try:
        yield Session(call)
    except call.NVMLError as e:
        raise _broken(e) from e
    finally:
        with suppress(call.NVMLError):
            call.nvmlShutdown()


def gpus(api: Any = None) -> tuple[Gpu, ...]:
    """Return this machine's GPUs, none where there is no driver; raises ToolError as `session` does."""
    with session(api) as opened:
        return opened.gpus() if opened else ()


def uses(api: Any = None) -> tuple[Use, ...]:
    """Return how much of each GPU is in use, nothing where there is no driver; raises ToolError as `session` does."""
    with session(api) as opened:
        return opened.uses() if opened else ()


def topology(api: Any = None) -> tuple[tuple[str, ...], ...]:
    """Return the matrix of `Session.topology`, empty where there is no driver; raises ToolError as `session` does."""
    with session(api) as opened:
        return opened.topology(opened.gpus()) if opened else ()


def facts(api: Any = None) -> dict[str, str]:
    """Return plain facts about the GPUs, sorted by key, none where there are none; raises ToolError as `session` does.

    `gpus` is how many; `gpu<i>_topology` is row `i` of the matrix; `gpu<i>_nvlinks` reads
    `18 x NVLink 4.0 at 26562 MB/s to NVSwitch`.
    """
    with session(api) as opened:
        found = opened.gpus() if opened else ()
        rows = opened.topology(found) if opened else ()
    told: dict[str, str] = {}
    for gpu, row in zip(found, rows, strict=True):
        figures = {
            "name": gpu.name,
            "memory_bytes": gpu.memory_bytes,
            "compute_capability": gpu.compute_capability,
            "power_limit_w": gpu.power_limit_w and f"{gpu.power_limit_w:g}",
            "mig": "on" if gpu.mig else "off",
            "nvlinks": _links_told(gpu.links),
            "topology": " ".join(row),
        }
        told |= {f"gpu{gpu.index}_{key}": str(value) for key, value in figures.items() if value}
        told |= {"gpus": str(len(found)), "gpu_driver": gpu.driver} | ({"cuda_driver": gpu.cuda} if gpu.cuda else {})
    return dict(sorted(told.items()))


def _links_between(one: Gpu, other: Gpu) -> int:
    straight = sum(link.peer == other.pci_bus_id for link in one.links)
    return straight or min(sum(link.peer == NVSWITCH for link in gpu.links) for gpu in (one, other))


def _links_told(links: tuple[Link, ...]) -> str:
    kinds = Counter((link.version, link.mb_per_s, link.peer) for link in links)
    return ", ".join(
        f"{count} x NVLink {version}{f' at {speed} MB/s' if speed else ''} to {peer}"
        for (version, speed, peer), count in sorted(kinds.items(), key=str)
    )


def _module() -> Any | None:
    try:
        return importlib.import_module("pynvml")
    except ImportError as e:
        if not DRIVER.exists():
            return None
        raise ToolError(
            "there is an NVIDIA driver, but nvidia-ml-py is not installed", hint="run make setup, which installs it"
        ) from e


def _broken(error: Exception) -> ToolError:
    return ToolError(
        f"the NVIDIA driver does not answer: {error}",
        hint="see that nvidia-smi works; after an update of the driver, reboot",
    )


def _bus_id(info: Any) -> str:
    return _text(info.busId).upper()


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
