"""The scheduler extender behind a real kube-scheduler: pods are placed where they may run, and events say why not.

KUBE_SCHEDULER_EXTENDER is the URL on loopback at which the cluster's scheduler asks an extender (for another cluster: a
tunnel to it); the tests start the extender there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.catalog.names import Channel
from pipeline.manifest.encoding import sha256
from pipeline.ports import trust
from pipeline.ports.kube import EVENT, NODE, POD, Cluster, Object, note
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import publish
from tests.support import kube, proven
from tests.support.releases import EDGE, LINE, NOW, SERVER, Publisher

URL = os.environ.get("KUBE_SCHEDULER_EXTENDER", "")
ENABLE = (
    "KUBE_SCHEDULER_EXTENDER is not set: let the cluster's kube-scheduler ask an extender there (docs/scheduler.md)"
)
pytestmark = [*kube.MARKS, pytest.mark.skipif(not URL, reason=ENABLE)]
ROOT = Path(__file__).parents[2]
YEARS = 3650


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    """The cluster."""
    return kube.cluster()


@pytest.fixture(scope="module")
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def place(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own."""
    with kube.namespace(cluster) as name:
        yield name


@pytest.fixture(scope="module")
def released(publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a registry of a release that is proven on boards, and the extender's process over it."""
    folder = tmp_path_factory.mktemp("scheduler")
    trust.pin_own_key(folder / "trust.yaml", LINE, publisher.pair.public_pem)
    (folder / "first").write_text(_publish(folder, publisher, 1))
    with _extender(folder):
        yield folder


def _publish(folder: Path, publisher: Publisher, version: int, proof: proven.Proof = proven.ON_BOARDS) -> str:
    release = proven.release(publisher, folder / str(version), version, proof=proof, valid_days=YEARS)
    done = publish(
        FolderStore(folder / "registry"), release, channel=Channel.DEV, signer=publisher.sign, opener=publisher.opener,
        now=NOW,
    )  # fmt: skip
    return done.release.digest


@contextmanager
def _extender(folder: Path) -> Iterator[None]:
    parts = urlsplit(URL)
    command = [
        sys.executable, "-m", "pipeline.cli", "scheduler", f"--registry={folder / 'registry'}", f"--line={LINE}",
        f"--trust={folder / 'trust.yaml'}", f"--state={folder / 'state.json'}", f"--host={parts.hostname}",
        f"--port={parts.port}", "--poll=1",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            kube.eventually(_ready(process))
            yield
        finally:
            process.terminate()
            said = process.stderr.read() if process.stderr else ""
            print(said)


def _ready(process: subprocess.Popen[str]) -> Callable[[], bool]:
    def look() -> bool:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        try:
            with urllib.request.urlopen(f"{URL}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    return look


@contextmanager
def noted(cluster: Cluster, node: str, **changes: dict[str, str]) -> Iterator[None]:
    """Let a node have annotations or labels for a while."""
    cluster.patch(NODE, node, None, note(**changes))
    try:
        yield
    finally:
        cluster.patch(NODE, node, None, note(**{kind: dict.fromkeys(names) for kind, names in changes.items()}))


def start(cluster: Cluster, place: str, document: Object, **spec: object) -> Callable[[], str]:
    """Create a pod, and return what looks up the node it is bound to, empty while it is on none."""
    document["metadata"]["namespace"] = place
    document["spec"] |= {"tolerations": [{"operator": "Exists"}], **spec}
    assert cluster.create(document) is not None
    name = document["metadata"]["name"]

    def bound() -> str:
        found = cluster.find(POD, name, place) or {}
        return str(found.get("spec", {}).get("nodeName", ""))

    return bound


def reasons(cluster: Cluster, place: str, name: str) -> Callable[[], str]:
    """Return what looks up why a pod was not scheduled."""

    def look() -> str:
        events = cluster.find_all(EVENT, place, fields=f"involvedObject.name={name},reason=FailedScheduling")
        return " | ".join(str(e.get("message") or e.get("note")) for e in events)

    return look


def test_a_variant_runs_on_its_own_kind_of_node(cluster: Cluster, place: str, released: Path) -> None:
    """A Pi's variant goes to a Pi though all nodes have room for it and it tolerates everything."""
    pis = {n["metadata"]["name"] for n in kube.needs_nodes(cluster, kube.PIS, 1)}
    bound = [start(cluster, place, proven.pod(f"server-{number}")) for number in range(3)]
    assert {kube.eventually(look) for look in bound} <= pis


def test_the_node_that_has_the_model_is_preferred(
    cluster: Cluster, place: str, released: Path, publisher: Publisher
) -> None:
    """Of three Pis that are alike the one with the model on its disk is taken."""
    (*_, last) = pis = sorted(n["metadata"]["name"] for n in kube.needs_nodes(cluster, kube.PIS, 2))
    model = (released / "1" / EDGE / "model.gguf").read_bytes()
    with noted(cluster, last, annotations={"edge-release.dev/models": sha256(model)}):
        kube.eventually(lambda: _best(proven.pod(), pis) == {last})  # the extender heard of it
        assert kube.eventually(start(cluster, place, proven.pod())) == last


def _best(pod: Object, nodes: list[str]) -> set[str]:
    """Return the nodes that the extender scores highest."""
    body = json.dumps({"Pod": pod, "NodeNames": nodes}).encode()
    with urllib.request.urlopen(f"{URL}/prioritize", data=body, timeout=5) as answer:
        scores = {row["Host"]: row["Score"] for row in json.load(answer)}
    return {name for name, score in scores.items() if score == max(scores.values())}


def test_tensor_parallelism_needs_nvlink(cluster: Cluster, place: str, released: Path) -> None:
    """The large tier waits, with the reason in an event, until the node says that NVLink joins enough of its GPUs."""
    (node, *_) = kube.needs_nodes(cluster, "gpu=nvlink", 1)
    name = node["metadata"]["name"]
    bound = start(cluster, place, proven.pod("large", SERVER))
    said = kube.eventually(reasons(cluster, place, "large"))
    assert "the node does not say which of its GPUs NVLink joins" in said
    assert f"{SERVER} is for x86_64" in said
    assert bound() == ""
    with noted(cluster, name, labels={"edge-release.dev/nvlink": "2-2"}):
        look = reasons(cluster, place, "large")
        kube.eventually(lambda: "NVLink joins at most 2 of the node's GPUs, 4 are needed" in look())
    with noted(cluster, name, labels={"edge-release.dev/nvlink": "4"}):
        assert kube.eventually(bound) == name


def test_no_board_without_passing_evidence(cluster: Cluster, place: str, released: Path, publisher: Publisher) -> None:
    """A pod of a release that only an emulator proved is placed on no Pi; one pinned to the proven release still is."""
    pis = {n["metadata"]["name"] for n in kube.needs_nodes(cluster, kube.PIS, 1)}
    digest = _publish(released, publisher, 2, proven.EMULATED)
    start(cluster, place, proven.pod("unproven", release="2", manifest=digest))
    said = kube.eventually(reasons(cluster, place, "unproven"))
    assert f"{EDGE} is not proven on pi5: there is no signed evidence" in said
    assert (
        kube.eventually(
            start(cluster, place, proven.pod("proven", release="1", manifest=(released / "first").read_text()))
        )
        in pis
    )


def test_a_manifest_that_was_not_signed_is_placed_nowhere(cluster: Cluster, place: str, released: Path) -> None:
    """A pod that names another manifest than the registry's release waits."""
    start(cluster, place, proven.pod("other", release="1", manifest="0" * 64))
    said = kube.eventually(reasons(cluster, place, "other"))
    assert "release 1 has another manifest than the pod names" in said


def test_pods_of_others_are_left_alone(cluster: Cluster, place: str, released: Path) -> None:
    """A pod that names no release goes where kube-scheduler likes."""
    web = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    }
    assert kube.eventually(start(cluster, place, web))
