"""GPUs and their links are described as the driver gives them, and what it does not give is left out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ToolError
from pipeline.ports import nvml
from pipeline.ports.nvml import Link, Use
from tests.support.nvml import NO_PEER, SWITCH, FakeGpu, FakeNvml

# Two H100 PCIe cards with NVLink bridges in an HPE DL380a Gen11, as `nvidia-smi` 555.42.02, its `topo -m`, `nvlink -s`
# and `nvlink -R` were published for them: twelve of eighteen links active, NV12.
BRIDGED = (0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15)
LEFT, RIGHT = "00000000:C2:00.0", "00000000:D5:00.0"
# `nvidia-smi topo -m` of a DGX-1 (V100): https://gist.github.com/ashwin/e139748bdba15f5af63f0146d01ee4c3, whose older
# driver still calls SYS "SOC". The rows of the first four GPUs among themselves.
DGX1 = [["X", "NV1", "NV1", "NV2"], ["NV1", "X", "NV2", "NV1"], ["NV1", "NV2", "X", "NV2"], ["NV2", "NV1", "NV2", "X"]]


def bridged() -> FakeNvml:
    card = FakeGpu("GPU-left", "NVIDIA H100 PCIe", LEFT, milliwatts=350_000, links=dict.fromkeys(BRIDGED, RIGHT))
    return FakeNvml([card, replace(card, uuid="GPU-right", bus=RIGHT, links=dict.fromkeys(BRIDGED, LEFT))])


def switched(count: int = 8) -> FakeNvml:
    return FakeNvml(
        [
            FakeGpu(f"GPU-{i}", bus=f"00000000:{16 * i:02X}:00.0", links=dict.fromkeys(range(18), SWITCH))
            for i in range(count)
        ]
    )


def wired(matrix: list[list[str]]) -> FakeNvml:
    """Return GPUs whose links are those of a matrix."""
    buses = [f"00000000:{i:02X}:00.0" for i in range(len(matrix))]
    gpus = []
    for i, row in enumerate(matrix):
        peers = [buses[j] for j, path in enumerate(row) if path.startswith("NV") for _ in range(int(path[2:]))]
        gpus.append(FakeGpu(f"GPU-{i}", "Tesla V100-SXM2-16GB", buses[i], links=dict(enumerate(peers)), version=2))
    return FakeNvml(gpus)


def test_how_much_is_in_use() -> None:
    """Free memory and active links of each GPU; what one does not give is left out, and without a driver all is."""
    api = bridged()
    api.gpus[1] = replace(api.gpus[1], memory=None, links=dict.fromkeys(BRIDGED[1:], LEFT))
    api.gpus[0] = replace(api.gpus[0], free=1 << 30)
    assert nvml.uses(api) == (Use(0, 1 << 30, 85520809984, 12), Use(1, None, None, 11))
    assert nvml.uses(FakeNvml([], fails=FakeNvml.NVML_ERROR_LIBRARY_NOT_FOUND)) == ()


def test_two_bridged_cards() -> None:
    """Two cards with a bridge: twelve links each, to the other's bus id."""
    api = bridged()
    left, right = nvml.gpus(api)
    assert (left.name, left.uuid, left.pci_bus_id) == ("NVIDIA H100 PCIe", "GPU-left", LEFT)
    assert (left.memory_bytes, left.driver, left.cuda) == (85520809984, "555.42.02", "12.5")
    assert (left.compute_capability, left.power_limit_w, left.mig) == ("9.0", 350.0, False)
    assert left.links == tuple(Link(i, "4.0", 26562, RIGHT) for i in BRIDGED)
    assert {link.peer for link in right.links} == {LEFT}
    assert nvml.topology(api) == (("X", "NV12"), ("NV12", "X"))
    assert api.opened == 0


def test_gpus_on_a_switch_reach_each_other_through_it() -> None:
    """Eight GPUs on NVSwitches: every pair is NV18, as nvidia-smi says."""
    assert set(itertools.chain(*nvml.topology(switched()))) == {"X", "NV18"}
    assert nvml.gpus(switched())[0].links[0].peer == "NVSwitch"


def test_a_hybrid_mesh_is_told_as_nvidia_smi_tells_it() -> None:
    """The links between V100s of a DGX-1 give the matrix that was recorded there."""
    assert [list(row) for row in nvml.topology(wired(DGX1))] == DGX1


@pytest.mark.parametrize(
    ("level", "name"),
    [(0, "PIX"), (10, "PIX"), (20, "PXB"), (30, "PHB"), (40, "NODE"), (50, "SYS"), (60, "unknown"), (None, "unknown")],
)
def test_pcie_paths_have_nvidia_smis_names(level: int | None, name: str) -> None:
    """Without NVLinks the path is that of the common ancestor, or unknown where the driver does not say."""
    levels = {} if level is None else {frozenset({0, 1}): level}
    api = FakeNvml([FakeGpu("A"), FakeGpu("B", bus="00000000:3B:00.0")], levels=levels)
    assert nvml.topology(api) == (("X", name), (name, "X"))


def test_facts_are_flat_and_sorted_and_name_no_card() -> None:
    """Facts for evidence: what the GPUs are and how they are joined, but not which ones they are."""
    found = nvml.facts(switched(2))
    assert found == {
        "cuda_driver": "12.5",
        "gpu0_compute_capability": "9.0",
        "gpu0_memory_bytes": "85520809984",
        "gpu0_mig": "off",
        "gpu0_name": "NVIDIA H100 80GB HBM3",
        "gpu0_nvlinks": "18 x NVLink 4.0 at 26562 MB/s to NVSwitch",
        "gpu0_power_limit_w": "700",
        "gpu0_topology": "X NV18",
        "gpu1_compute_capability": "9.0",
        "gpu1_memory_bytes": "85520809984",
        "gpu1_mig": "off",
        "gpu1_name": "NVIDIA H100 80GB HBM3",
        "gpu1_nvlinks": "18 x NVLink 4.0 at 26562 MB/s to NVSwitch",
        "gpu1_power_limit_w": "700",
        "gpu1_topology": "NV18 X",
        "gpu_driver": "555.42.02",
        "gpus": "2",
    }
    assert list(found) == sorted(found)
    assert "GPU-0" not in str(found)


def test_links_to_several_peers_are_told_apart() -> None:
    """Links are counted by version, speed and peer."""
    found = nvml.facts(wired(DGX1))["gpu0_nvlinks"]
    assert found == (
        "1 x NVLink 2.0 at 26562 MB/s to 00000000:01:00.0, 1 x NVLink 2.0 at 26562 MB/s to 00000000:02:00.0, "
        "2 x NVLink 2.0 at 26562 MB/s to 00000000:03:00.0"
    )


def test_a_partitioned_gpu_without_links_is_described() -> None:
    """MIG, no NVLink, no memory figure, no limit: what is left is told."""
    bare = FakeGpu("A", memory=None, capability=None, milliwatts=None, mig=[1, 1], links=None)
    assert nvml.facts(FakeNvml([bare])) == {
        "cuda_driver": "12.5",
        "gpu0_mig": "on",
        "gpu0_name": "NVIDIA H100 80GB HBM3",
        "gpu0_topology": "X",
        "gpu_driver": "555.42.02",
        "gpus": "1",
    }


def test_a_link_that_says_little_is_a_link() -> None:
    """A link without version, speed or peer still counts as one."""
    api = FakeNvml([FakeGpu("A", links={3: NO_PEER}, version=None, speed=None)])
    assert nvml.gpus(api)[0].links == (Link(3, "unknown", None, "unknown"),)
    assert nvml.facts(api)["gpu0_nvlinks"] == "1 x NVLink unknown to unknown"


def test_older_bindings_answer_in_bytes() -> None:
    """Bindings that give bytes for text are understood."""
    api = bridged()
    api.as_bytes = True
    assert nvml.gpus(api) == nvml.gpus(bridged())


def test_without_a_driver_there_are_no_gpus() -> None:
    """A machine without the driver's library has no GPUs, no topology and no facts about them."""
    api = FakeNvml([], fails=FakeNvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert (nvml.gpus(api), nvml.topology(api), nvml.facts(api)) == ((), (), {})


def test_a_driver_without_gpus_has_none() -> None:
    """A driver that manages nothing gives nothing."""
    api = FakeNvml([])
    assert (nvml.gpus(api), nvml.facts(api), api.opened) == ((), {}, 0)


@pytest.mark.parametrize(
    "api",
    [FakeNvml([], fails=FakeNvml.NVML_ERROR_DRIVER_NOT_LOADED), FakeNvml([FakeGpu("A")], lost=True)],
    ids=["kernel module missing", "GPU lost"],
)
def test_a_broken_driver_is_an_error(api: FakeNvml) -> None:
    """A driver that is there and does not work is said, with what to do, and chained."""
    with pytest.raises(ToolError, match="does not answer") as caught:
        nvml.facts(api)
    assert isinstance(caught.value.__cause__, FakeNvml.NVMLError)
    assert "reboot" in caught.value.hint
    assert api.opened == 0


def test_the_real_bindings_fit() -> None:
    """What is called exists in nvidia-ml-py; on a machine without a driver they give no GPUs, on one with it some."""
    pynvml = pytest.importorskip("pynvml")
    called = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]
    assert [name for name in called if not hasattr(pynvml, name)] == []
    constants = [name for name in called if isinstance(getattr(FakeNvml, name), int) and "MAX" not in name]
    assert {name: getattr(pynvml, name) for name in constants} == {name: getattr(FakeNvml, name) for name in constants}
    assert isinstance(nvml.gpus(), tuple)


FIGURES: dict[str, st.SearchStrategy[Any]] = {
    "name": st.text(max_size=20),
    "bus": st.text(max_size=20),
    "memory": st.none() | st.integers(0, 1 << 64),
    "capability": st.none() | st.tuples(st.integers(0, 99), st.integers(0, 9)),
    "milliwatts": st.none() | st.integers(0, 1 << 32),
    "mig": st.none() | st.just([1, 1]),
    "links": st.none() | st.dictionaries(st.integers(0, 40), st.sampled_from([LEFT, RIGHT, SWITCH, NO_PEER])),
    "version": st.none() | st.integers(0, 99),
    "speed": st.none() | st.integers(0, 1 << 32),
}


@settings(max_examples=50)
@given(st.lists(st.builds(FakeGpu, st.text(), **FIGURES), max_size=3))
def test_any_figures_give_facts(gpus: list[FakeGpu]) -> None:
    """Whatever a driver answers or leaves out, facts are texts under sorted keys and the matrix is square."""
    api = FakeNvml(gpus)
    found = nvml.facts(api)
    assert list(found) == sorted(found)
    assert all(isinstance(value, str) for value in found.values())
    assert [len(row) for row in nvml.topology(api)] == [len(gpus)] * len(gpus)


@pytest.mark.parametrize(("kind", "expected"), [(0, 25), (1, 25), (3, 25), (99, None), (-1, None)])
def test_a_field_has_its_value_where_its_type_says(kind: int, expected: int | None) -> None:
    """A field's value is read from the member that its type names."""

    class Api(FakeNvml):
        def nvmlDeviceGetFieldValues(self, gpu: FakeGpu, fields: list[tuple[int, int]]) -> list[SimpleNamespace]:
            value = SimpleNamespace(dVal=25.0, uiVal=25, ullVal=25)
            return [SimpleNamespace(nvmlReturn=0, valueType=kind, value=value)]

    (found,) = nvml.gpus(Api([FakeGpu("A", links={0: SWITCH})]))
    assert found.links[0].mb_per_s == expected
