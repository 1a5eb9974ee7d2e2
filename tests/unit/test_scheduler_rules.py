"""What the scheduler extender refuses and prefers: pure rules over frozen views of nodes, pods and a verified release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog.names import RunnerClass, Target
from pipeline.control.scheduler import nodes, pods, rules
from pipeline.control.scheduler.needs import Needs, Release, read
from pipeline.control.scheduler.nodes import Machine, Node, quantity
from pipeline.control.scheduler.pods import Wanted
from pipeline.control.scheduler.rules import MAX_SCORE, Refusal, Settings, Why
from pipeline.manifest import rules as manifest_rules
from pipeline.manifest.rules import Seen
from tests.support import proven
from tests.support.proven import GIB, nvlink, pi, pod
from tests.support.releases import EDGE, LATER, LINE, NOW, SERVER, Publisher

PUBLISHER, STRANGER = Publisher(), Publisher()
HOUSE = Settings()


def released(folder: Path, opener: Any = PUBLISHER.opener, **options: Any) -> Release:
    signed = proven.release(PUBLISHER, folder, **options)
    accepted = manifest_rules.accept_release(
        signed.bundles, opener=PUBLISHER.opener, line=LINE, version=1, seen=Seen(), now=NOW
    )
    return read(accepted, lambda _: opener)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return released(tmp_path_factory.mktemp("release"))


def refusal(needs: Needs, document: dict[str, Any], settings: Settings = HOUSE) -> Refusal | None:
    node = nodes.parse(document)
    return rules.filter(needs, [node.name], {node.name: node}, settings)[node.name]


PLAIN = {"kubernetes.io/arch": "amd64"}
CASES: dict[str, tuple[str, dict[str, Any], Why | None]] = {
    "a Pi's variant on a Pi": (EDGE, pi(), None),
    "on another instruction set": (EDGE, nvlink(joined="4"), Why.TARGET),
    "where the instruction set is unknown": (EDGE, proven.node("n", {"edge": "pi"}, {"memory": "8Gi"}), Why.TARGET),
    "on a board that says nothing of it": (
        EDGE, proven.node("n", {"kubernetes.io/arch": "arm64", "edge-release.dev/board": "riscv"}, {"memory": "8Gi"}),
        None,  # an emulator's evidence counts, as on any other arm64
    ),
    "on no board, proven by an emulator": (
        EDGE, proven.node("n", {"kubernetes.io/arch": "arm64"}, {"memory": "8Gi"}), None,
    ),
    "on a server, proven by the host": (
        "tiny-edge-x86_64", proven.node("n", PLAIN, {"memory": "8Gi"}), None,
    ),
    "on a node too small": (EDGE, proven.node("n", {"kubernetes.io/arch": "arm64"}, {"memory": "512Mi"}), Why.MEMORY),
    "on a node of unknown memory": (EDGE, proven.node("n", {"kubernetes.io/arch": "arm64"}, {}), Why.MEMORY),
    "over GPUs that NVLink joins": (SERVER, nvlink(joined="4"), None),
    "over GPUs in two pairs": (SERVER, nvlink(joined="2-2"), Why.NVLINK),
    "over too few GPUs": (SERVER, nvlink(gpus=2, joined="2"), Why.NVLINK),
    "over GPUs of unknown topology": (SERVER, nvlink(), Why.NVLINK),
    "over GPUs of garbled topology": (SERVER, nvlink(joined="4;rm -rf"), Why.NVLINK),
    "the large tier where no evidence is of": (
        SERVER, proven.node("n", PLAIN, {"memory": "512Gi", "nvidia.com/gpu": "4"}), Why.PROOF,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_where_a_variant_may_run(case: str, release: Release) -> None:
    """By instruction set, evidence, NVLink and memory; what is unknown is refused."""
    variant, document, why = CASES[case]
    found = refusal(release.variants[variant], document)
    assert (found and found.why) == why, found


def test_no_board_without_passing_evidence(tmp_path: Path) -> None:
    """An emulator's evidence opens no Pi, unless the site says that it does."""
    needs = released(tmp_path, proof=proven.EMULATED).variants[EDGE]
    found = refusal(needs, pi())
    assert found == Refusal(Why.PROOF, f"{EDGE} is not proven on pi5: there is no signed evidence")
    accepting = Settings(accept={RunnerClass.PI5: RunnerClass.EMULATED})
    assert refusal(needs, pi(), accepting) is None


def test_evidence_of_a_stranger_is_none(tmp_path: Path) -> None:
    """Evidence that no key pinned for the class signed proves nothing."""
    found = refusal(released(tmp_path, opener=STRANGER.opener).variants[EDGE], pi())
    assert found is not None
    assert found.why is Why.PROOF


def test_gpus_must_hold_the_weights(release: Release) -> None:
    """Where the node says how much memory a GPU has, the weights must fit all of them together."""
    needs = replace(release.variants[SERVER], weights=100 * GIB)
    document = nvlink(joined="4")
    document["metadata"]["labels"]["nvidia.com/gpu.memory"] = "24000"
    assert refusal(needs, document) == Refusal(Why.MEMORY, "4 GPUs of 23.44 GiB do not hold 100.00 GiB of weights")
    document["metadata"]["labels"]["nvidia.com/gpu.memory"] = "81559"
    assert refusal(needs, document) is None


def test_what_was_not_measured_is_refused(release: Release) -> None:
    """No size is guessed."""
    found = refusal(replace(release.variants[EDGE], memory=None), pi())
    assert found == Refusal(Why.MEMORY, f"the memory that {EDGE} takes was not measured")


def test_a_node_that_is_not_known_is_refused(release: Release) -> None:
    """Until it was listed."""
    found = rules.filter(release.variants[EDGE], ["new"], {}, HOUSE)
    assert found["new"] is not None
    assert found["new"].why is Why.UNKNOWN


NEEDED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "an expired release": ({"variant": EDGE}, LATER, "release 1 expired on"),
    "no such variant": ({"variant": "mid-tier-arm64"}, NOW, "release 1 has no mid-tier-arm64"),
    "another model": ({"variant": EDGE, "model": "0" * 64}, NOW, "another model than release 1's"),
}


@pytest.mark.parametrize("case", NEEDED)
def test_what_may_run_nowhere(case: str, release: Release) -> None:
    """A pod whose release or model is not right is refused everywhere."""
    wanted, now, says = NEEDED[case]
    found = rules.needed(Wanted(**wanted), release, now)
    assert isinstance(found, Refusal)
    assert says in found.text


SCORES: dict[str, tuple[str, dict[str, Any], str | None, int]] = {
    "nothing known but room": (EDGE, pi(), None, 2),
    "the model there": (EDGE, pi(models="{model}"), None, 7),
    "another model there": (EDGE, pi(models="0" * 64), None, 2),
    "in the same zone": (EDGE, pi(), "shop-7", 5),
    "near by its label": (EDGE, pi(), "shop-8", 4),
    "everything": (EDGE, pi(models="{model}"), "shop-7", 10),
    "GPUs joined in the very size": (SERVER, nvlink(joined="4"), None, 2),
    "GPUs joined in a larger group": (SERVER, nvlink(gpus=8, joined="8"), None, 0),
}


@pytest.mark.parametrize("case", SCORES)
def test_what_is_preferred(case: str, release: Release) -> None:
    """The model on the disk first, then the distance, then the fit."""
    variant, document, near, points = SCORES[case]
    needs = release.variants[variant]
    notes = {k: v.format(model=needs.model) for k, v in document["metadata"]["annotations"].items()}
    labels = {**document["metadata"]["labels"]}
    if near is not None:
        labels |= {"topology.kubernetes.io/zone": "shop-7", "edge-release.dev/latency-ms": "20"}
    node = nodes.parse({**document, "metadata": {**document["metadata"], "annotations": notes, "labels": labels}})
    assert rules.score(needs, Wanted(variant, near=near), node, HOUSE) == points


machines = st.builds(
    Machine,
    target=st.sampled_from([None, *Target]), board=st.sampled_from([None, *RunnerClass]),
    memory=st.none() | st.integers(0, 1 << 45), gpus=st.integers(0, 16), gpu_memory=st.none() | st.integers(0, 1 << 40),
    islands=st.none() | st.lists(st.integers(0, 16), min_size=1, max_size=4).map(tuple),
)  # fmt: skip
seen = st.builds(
    Node, st.just("n"), machines, st.frozensets(st.sampled_from(["a", "b"])), st.sampled_from([None, "z"]),
    st.none() | st.floats(0, 1e6),
)  # fmt: skip


@given(seen, st.sampled_from([EDGE, SERVER, "tiny-edge-x86_64"]), st.sampled_from([None, "z"]))
def test_any_node_is_judged(release: Release, node: Node, variant: str, near: str | None) -> None:
    """A score is within its bounds, and nothing is accepted that lacks the ISA, the memory or the GPUs."""
    needs = release.variants[variant]
    assert 0 <= rules.score(needs, Wanted(variant, near=near), node, HOUSE) <= MAX_SCORE
    if rules.filter(needs, ["n"], {"n": node}, HOUSE)["n"] is None:
        machine = node.machine
        assert machine.target is needs.target
        assert machine.memory is not None
        assert needs.memory is not None
        assert machine.memory >= needs.memory
        assert needs.gpus == 1 or (machine.islands is not None and max(machine.islands) >= needs.gpus)


QUANTITIES = {
    "8Gi": 8 * GIB, "8062364Ki": 8062364 << 10, "4": 4, "500m": 0, "1500m": 1, "1e9": 10**9, "128974848": 128974848,
    "129M": 129 * 10**6, "1.5Gi": 3 * GIB // 2, "": None, "lots": None, "-1": None, "1Zi": None, None: None, "..": None,
}  # fmt: skip


@pytest.mark.parametrize("text", QUANTITIES)
def test_quantities(text: str | None) -> None:
    """As the API writes them; what is none is unknown."""
    assert quantity(text) == QUANTITIES[text]


HELD: dict[str, tuple[dict[str, Any], object]] = {
    "a server that was started": (
        {"metadata": {"annotations": {"edge-release.dev/model": "a" * 64}}, "spec": {"nodeName": "pi-1"}},
        ("pi-1", "a" * 64),
    ),
    "one that waits": ({"metadata": {"annotations": {"edge-release.dev/model": "a" * 64}}, "spec": {}}, None),
    "one without a model": ({"metadata": {"annotations": None}, "spec": {"nodeName": "pi-1"}}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("case", HELD)
def test_models_are_known_from_pods_too(case: str) -> None:
    """A server that was started on a node brought its model there."""
    document, expected = HELD[case]
    assert nodes.held(document) == expected


PODS: dict[str, tuple[dict[str, Any], object]] = {
    "none of ours": ({"metadata": {"name": "web"}}, None),
    "by its argument": (pod(), Wanted(EDGE)),
    "near a zone": (pod(near="z"), Wanted(EDGE, near="z")),
    "pinned": (pod(release="7", manifest="a" * 64), Wanted(EDGE, 7, "a" * 64)),
    "without a variant": (pod(variant=None), "does not say which variant"),
    "a release that is none": (pod(release="seven"), "is no version"),
    "a manifest that is none": (pod(release="7", manifest="../../x"), "is no digest"),
    "a manifest without a release": (pod(manifest="a" * 64), "is missing"),
}


@pytest.mark.parametrize("case", PODS)
def test_what_a_pod_says(case: str) -> None:
    """A pod says what it serves whole, or what is wrong is told; one that says nothing is none of ours."""
    document, expected = PODS[case]
    found: Mapping[str, Any] | object = pods.parse(document)
    if isinstance(expected, str):
        assert isinstance(found, str)
        assert expected in found
    else:
        assert found == expected


def test_a_pod_names_its_variant_by_annotation_first() -> None:
    """The argument counts where there is no annotation."""
    document = pod()
    document["metadata"]["annotations"][pods.VARIANT] = SERVER
    assert pods.parse(document) == Wanted(SERVER)


def test_scores_stay_within_the_protocol() -> None:
    """A site's points add up to ten at most."""
    with pytest.raises(ValueError, match="at most 10"):
        Settings(model_points=9)
