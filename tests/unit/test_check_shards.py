"""What counts as NVLink: whole GPUs, several of them, each two joined."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.model import torchrun
from pipeline.ports import nvml
from pipeline.stages.check_shards import stood_in
from tests.support.nvml import SWITCH, FakeGpu, FakeNvml

ONE, OTHER, THIRD = "00000000:1B:00.0", "00000000:3B:00.0", "00000000:5B:00.0"
PHB, SYS = 30, 50  # nvmlGpuTopologyLevel_t


def _machine(*links: dict[int, str] | None, mig: bool = False, **levels: int) -> FakeNvml:
    buses = (ONE, OTHER, THIRD)
    gpus = [FakeGpu(f"GPU-{i}", bus=buses[i], links=own) for i, own in enumerate(links)]
    gpus[-1] = replace(gpus[-1], mig=[1, 1] if mig else [0, 0])
    return FakeNvml(gpus, levels={frozenset(map(int, pair[1:])): level for pair, level in levels.items()})


def _stood_in(api: FakeNvml, ranks: int, device: str = "cuda") -> str | None:
    engine = {"device": device, "ranks": str(ranks), "backend": "nccl" if device == "cuda" else "gloo"}
    return stood_in(engine, nvml.gpus(api)[:ranks], nvml.topology(api))


@pytest.mark.parametrize(
    ("api", "ranks"),
    [
        pytest.param(_machine({0: OTHER}, {0: ONE}), 2, id="a bridge"),
        pytest.param(_machine(*[dict.fromkeys(range(18), SWITCH)] * 3), 3, id="a switch"),
        pytest.param(_machine({0: OTHER}, {0: ONE}, None, p02=SYS, p12=SYS), 2, id="a third GPU is not used"),
    ],
)
def test_gpus_joined_by_nvlink_are_of_the_class(api: FakeNvml, ranks: int) -> None:
    """Where the driver shows NVLink between each two GPUs that ranks are on, nothing stands in."""
    assert _stood_in(api, ranks) is None


@pytest.mark.parametrize(
    ("api", "ranks", "says"),
    [
        pytest.param(_machine(None), 1, "1 GPU without NVLink", id="one GPU"),
        pytest.param(_machine({0: SWITCH}, {0: SWITCH}), 1, "1 GPU without NVLink", id="one GPU of two"),
        pytest.param(_machine(None, mig=True), 1, "MIG partition", id="a partition"),
        pytest.param(_machine({0: OTHER}, {0: ONE}, mig=True), 2, "MIG partition", id="one of two partitioned"),
        pytest.param(_machine(None, None, p01=PHB), 2, "PCIe between GPUs (PHB)", id="PCIe"),
        pytest.param(_machine(None, None), 2, "PCIe between GPUs (unknown)", id="the driver does not say"),
        pytest.param(
            _machine({0: OTHER}, {0: ONE}, None, p02=SYS, p12=PHB),
            3,
            "PCIe between GPUs (PHB, SYS)",
            id="a pair and one",
        ),
        pytest.param(FakeNvml([]), 2, "2 ranks on GPUs of which the driver shows 0", id="not shown"),
    ],
)
def test_other_gpus_stand_in_and_say_so(api: FakeNvml, ranks: int, says: str) -> None:
    """CUDA alone is no proof of NVLink."""
    assert _stood_in(api, ranks) == says


def test_ranks_number_gpus_as_the_driver_does() -> None:
    """The GPUs that are looked at and metered are those that ranks are on, however fast which of them is."""
    for degree in (1, 2):
        assert torchrun.command("m", [], degree=degree, threads=1)[1]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_ranks_on_the_cpu_stand_in() -> None:
    """Without GPUs the evidence says what decoded."""
    assert _stood_in(FakeNvml([]), 2, "cpu") == "gloo on 2 CPU ranks"
