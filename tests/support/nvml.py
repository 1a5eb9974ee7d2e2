"""NVIDIA's management library, as the module `pynvml` presents it, over GPUs that a test describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

SWITCH = "switch"
NO_PEER = "no peer"


@dataclass
class FakeGpu:
    """One GPU; a figure that is None is one this GPU does not give.

    `links` maps an active link's number to its peer: a PCI bus id, `SWITCH` or `NO_PEER`.
    """

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    bus: str = "00000000:1B:00.0"
    memory: int | None = 85520809984
    free: int = 85520809984
    capability: tuple[int, int] | None = (9, 0)
    milliwatts: int | None = 700_000
    mig: list[int] | None = field(default_factory=lambda: [0, 0])
    links: Mapping[int, str] | None = None
    version: int | None = 6
    speed: int | None = 26562
    millijoules: Sequence[int] | None = None


class FakeNVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__({9: "Driver Not Loaded", 12: "NVML Shared Library Not Found"}.get(value, f"error {value}"))
        self.value = value


class FakeNvml:
    """The module; `levels` is the common ancestor of each pair, `opened` how often it is initialised now."""

    NVMLError = FakeNVMLError
    NVML_ERROR_INVALID_ARGUMENT = 2
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_NVLINK_MAX_LINKS = 36
    NVML_NVLINK_DEVICE_TYPE_SWITCH = 2
    NVML_FI_DEV_NVLINK_GET_SPEED = 164

    def __init__(
        self,
        gpus: Sequence[FakeGpu],
        *,
        levels: Mapping[frozenset[int], int] | None = None,
        fails: int | None = None,
        lost: bool = False,
        as_bytes: bool = False,
    ) -> None:
        self.gpus, self.levels, self.fails, self.lost, self.as_bytes = list(gpus), levels or {}, fails, lost, as_bytes
        self.opens = self.opened = 0
        self._counters = {gpu.uuid: iter(gpu.millijoules or ()) for gpu in gpus}

    def nvmlInit(self) -> None:
        if self.fails is not None:
            raise FakeNVMLError(self.fails)
        self.opens += 1
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self) -> str | bytes:
        return self._text("555.42.02")

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 12050

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        return self._given(next((gpu for gpu in self.gpus if gpu.uuid == uuid), None), self.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str | bytes:
        if self.lost:
            raise FakeNVMLError(self.NVML_ERROR_GPU_IS_LOST)
        return self._text(gpu.name)

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str | bytes:
        return self._text(gpu.uuid)

    def nvmlDeviceGetPciInfo(self, gpu: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(busId=self._text(gpu.bus))

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(total=self._given(gpu.memory), free=gpu.free)

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> tuple[int, int]:
        return self._given(gpu.capability)

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: FakeGpu) -> int:
        return self._given(gpu.milliwatts)

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> list[int]:
        return self._given(gpu.mig)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu) -> int:
        return next(self._given(gpu.millijoules and self._counters[gpu.uuid]))

    def nvmlDeviceGetNvLinkState(self, gpu: FakeGpu, link: int) -> int:
        return int(link in self._given(gpu.links))

    def nvmlDeviceGetNvLinkVersion(self, gpu: FakeGpu, link: int) -> int:
        return self._given(gpu.version)

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, gpu: FakeGpu, link: int) -> int:
        return 2 if self._peer(gpu, link) == SWITCH else 0

    def nvmlDeviceGetNvLinkRemotePciInfo(self, gpu: FakeGpu, link: int) -> SimpleNamespace:
        return SimpleNamespace(busId=self._text(self._peer(gpu, link)))

    def nvmlDeviceGetFieldValues(self, gpu: FakeGpu, fields: list[tuple[int, int]]) -> list[SimpleNamespace]:
        assert all(field == self.NVML_FI_DEV_NVLINK_GET_SPEED for field, _ in fields)
        status = self.NVML_ERROR_NOT_SUPPORTED if gpu.speed is None else 0
        return [SimpleNamespace(nvmlReturn=status, valueType=1, value=SimpleNamespace(uiVal=gpu.speed)) for _ in fields]

    def nvmlDeviceGetTopologyCommonAncestor(self, one: FakeGpu, other: FakeGpu) -> int:
        return self._given(self.levels.get(frozenset({self.gpus.index(one), self.gpus.index(other)})))

    def _peer(self, gpu: FakeGpu, link: int) -> str:
        peer = (gpu.links or {}).get(link, NO_PEER)
        return self._given(None if peer == NO_PEER else peer)

    def _given(self, value: Any, error: int = NVML_ERROR_NOT_SUPPORTED) -> Any:
        if value is None:
            raise FakeNVMLError(error)
        return value

    def _text(self, value: str) -> str | bytes:
        return value.encode() if self.as_bytes else value
