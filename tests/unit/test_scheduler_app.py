"""The scheduler extender as kube-scheduler sees it: its protocol within bounds, its releases and its doubts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog.names import Channel
from pipeline.control.scheduler import protocol
from pipeline.control.scheduler.app import Extender
from pipeline.control.scheduler.protocol import MAX_BODY, MAX_NODES, MalformedError
from pipeline.control.scheduler.releases import Releases, Source
from pipeline.control.scheduler.rules import Settings
from pipeline.control.scheduler.watch import STALE_S, Nodes
from pipeline.errors import ToolError
from pipeline.ports.kube import NODE, POD, Change, Kind, Object
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import publish
from tests.support import proven
from tests.support.proven import nvlink, pi, pod
from tests.support.releases import EDGE, LATER, LINE, NOW, SERVER, Publisher
from tests.support.stores import Hooked

PUBLISHER = Publisher()


@dataclass
class Listing:
    """A cluster of nodes and pods, told of once at each look."""

    objects: dict[Kind, list[Object]]
    gone: bool = False

    def watch(self, kind: Kind, *, labels: str = "", seconds: int = 30) -> Iterator[list[Change]]:
        if self.gone:
            raise ToolError("the API server is gone", hint="wait")
        yield [Change(document) for document in self.objects.get(kind, [])]


@dataclass
class Scene:
    """An extender over a registry and a cluster."""

    folder: Path
    store: Any
    cluster: Listing
    time: float = 0.0
    now: Any = NOW
    extender: Extender = field(init=False)

    def __post_init__(self) -> None:
        source = Source(
            lambda: self.store,
            PUBLISHER.opener,
            lambda _: PUBLISHER.opener,
            LINE,
            Channel.DEV,
            self.folder / "seen.json",
        )
        clock: Callable[[], float] = lambda: self.time  # noqa: E731
        self.extender = Extender(
            Nodes(self.cluster, clock), Releases(source, lambda: self.now, clock), Settings(), clock, lambda: self.now
        )  # type: ignore[arg-type]
        self.look()

    def look(self) -> None:
        self.extender.nodes.follow_nodes(Event())
        self.extender.nodes.follow_pods(Event())
        self.extender.releases.look()

    def publish(self, version: int, **options: Any) -> str:
        release = proven.release(PUBLISHER, self.folder / f"release-{version}", version, **options)
        done = publish(
            self.store, release, channel=Channel.DEV, signer=PUBLISHER.sign, opener=PUBLISHER.opener, now=NOW
        )
        return done.release.digest

    def ask(self, verb: str, document: Any, nodes: list[str] | None = None) -> Any:
        body = json.dumps({"Pod": document, "Nodes": None, "NodeNames": nodes or ["pi-1", "nv-1"]}).encode()
        return json.loads(self.post(f"/{verb}", body)[1])

    def placed(self, document: Any) -> list[str]:
        return list(self.ask("filter", document)["NodeNames"])

    def reasons(self, document: Any) -> set[str]:
        return set(self.ask("filter", document)["FailedNodes"].values())

    def post(self, path: str, body: bytes = b"", method: str = "POST") -> tuple[int, bytes]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.extender({"type": "http", "path": path, "method": method}, receive, send))
        return sent[0]["status"], b"".join(m.get("body", b"") for m in sent)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Release 1 on the channel, a Pi, and a machine with four joined GPUs."""
    found = Scene(tmp_path, FolderStore(tmp_path / "registry"), Listing({NODE: [pi(), nvlink(joined="4")]}))
    found.publish(1)
    found.look()
    return found


def test_servers_are_placed_where_they_may_run(scene: Scene) -> None:
    """Each on its own kind of node; the other is refused with a reason; both maps say it."""
    assert scene.placed(pod()) == ["pi-1"]
    assert scene.placed(pod(variant=SERVER)) == ["nv-1"]
    answer = scene.ask("filter", pod())
    assert answer["FailedNodes"] == {"nv-1": f"the node is x86_64, {EDGE} is for arm64"}
    assert answer["FailedAndUnresolvableNodes"] == answer["FailedNodes"]
    assert answer["Error"] == ""


def test_other_pods_pass(scene: Scene) -> None:
    """A pod that names no release is none of the extender's business, whatever it knows."""
    scene.cluster.gone, scene.time = True, STALE_S + 1
    web = {"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web"}]}}
    assert scene.placed(web) == ["pi-1", "nv-1"]
    assert scene.ask("prioritize", web) == [{"Host": "pi-1", "Score": 0}, {"Host": "nv-1", "Score": 0}]


def test_the_node_with_the_model_is_preferred(scene: Scene) -> None:
    """A server that ran on a node left its model there."""
    model = scene.extender.releases.current.variants[EDGE].model  # type: ignore[union-attr]
    scene.cluster.objects[NODE] = [pi("pi-1"), pi("pi-2")]
    scene.cluster.objects[POD] = [
        {
            "metadata": {"name": "a", "namespace": "b", "annotations": {"edge-release.dev/model": model}},
            "spec": {"nodeName": "pi-2"},
        }
    ]
    scene.look()
    scores = {s["Host"]: s["Score"] for s in scene.ask("prioritize", pod(), ["pi-1", "pi-2"])}
    assert scores == {"pi-1": 2, "pi-2": 7}


def test_a_pinned_release_is_fetched_and_verified(scene: Scene) -> None:
    """A pod of another release than the channel's is judged by its own, which is fetched once."""
    first = scene.extender.releases.current
    scene.publish(2, proof=proven.EMULATED)
    scene.look()
    assert first is not None
    hooked = scene.store = Hooked(scene.store)
    pinned = pod(release="1", manifest=first.digest)
    assert scene.placed(pinned) == ["pi-1"]
    assert scene.placed(pod()) == []
    assert scene.reasons(pod()) == {
        f"{EDGE} is not proven on pi5: there is no signed evidence", f"the node is x86_64, {EDGE} is for arm64",
    }  # fmt: skip
    assert scene.placed(pinned) == ["pi-1"]
    assert hooked.calls == []


NOWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "another manifest": (pod(release="1", manifest="0" * 64), "release 1 has another manifest than the pod names"),
    "no such release": (pod(release="9", manifest="0" * 64), "there is no release 9"),
    "no variant": (pod(variant=None), "does not say which variant"),
    "no such variant": (pod(variant="mid-tier-arm64"), "release 1 has no mid-tier-arm64"),
    "another model": (pod(model="0" * 64), "another model"),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_what_is_not_right_is_placed_nowhere(case: str, scene: Scene) -> None:
    """Every node is refused with the one reason, and scores nothing."""
    document, reason = NOWHERE[case]
    assert scene.placed(document) == []
    (said,) = scene.reasons(document)
    assert reason in said
    assert {s["Score"] for s in scene.ask("prioritize", document)} == {0}


def test_what_could_not_be_had_is_asked_for_again_later(scene: Scene) -> None:
    """A release that a pod names and that is not there is looked for once in ten seconds."""
    document = pod(release="2")
    assert scene.placed(document) == []
    scene.publish(2)
    assert scene.placed(document) == []
    scene.time += 11
    assert scene.placed(document) == ["pi-1"]


DOUBTS: dict[str, tuple[Callable[[Scene], object], str]] = {
    "nodes never listed": (
        lambda s: setattr(s.extender, "nodes", Nodes(Listing({}), lambda: 0.0)), "were not listed yet",  # type: ignore[arg-type]
    ),
    "nodes listed long ago": (lambda s: setattr(s, "time", STALE_S + 1), "were last heard of over 60 s ago"),
    "an expired release": (lambda s: setattr(s, "now", LATER), "release 1 expired"),
}  # fmt: skip


@pytest.mark.parametrize("case", DOUBTS)
def test_doubt_refuses(case: str, scene: Scene) -> None:
    """What is out of date places no server."""
    bring, reason = DOUBTS[case]
    bring(scene)
    assert scene.placed(pod()) == []
    (said,) = scene.reasons(pod())
    assert reason in said


@dataclass
class Told:
    """A cluster that tells of changes, batch by batch, and then is gone."""

    batches: dict[Kind, list[list[Change]]]

    def watch(self, kind: Kind, *, labels: str = "", seconds: int = 30) -> Iterator[list[Change]]:
        yield from self.batches.get(kind, [])
        raise ToolError("the API server is gone", hint="wait")


def test_changes_are_followed() -> None:
    """Nodes that come, change and go, and models that servers' pods bring and take along; what was known stays."""
    serving = pod("server", model="a" * 64)
    serving["spec"]["nodeName"], serving["metadata"]["namespace"] = "pi-1", "edge"
    told = Told(
        {
            NODE: [[Change(pi("pi-1")), Change(pi("pi-2"))], [Change(pi("pi-2"), gone=True)], [Change(pi("pi-3"))], []],
            POD: [[Change(serving)]],
        }
    )
    known = Nodes(told, lambda: 7.0)
    known.follow_nodes(Event())
    assert set(known.found) == {"pi-1", "pi-3"}
    assert (known.at, known.problem) == (7.0, "the API server is gone")
    known.follow_pods(Event())
    assert known.found["pi-1"].models == {"a" * 64}
    told.batches[POD].append([Change(serving, gone=True)])
    known.follow_pods(Event())
    assert known.found["pi-1"].models == frozenset()


def test_what_goes_wrong_leaves_what_was_known(scene: Scene) -> None:
    """A registry and an API server that are gone for a while change nothing; readiness tells of nodes."""
    scene.cluster.gone, scene.store = True, FolderStore(scene.folder / "nothing")
    scene.time = STALE_S - 1
    scene.look()
    assert scene.placed(pod()) == ["pi-1"]
    assert scene.post("/readyz", method="GET")[0] == 200
    assert scene.extender.nodes.problem == "the API server is gone"
    scene.time = STALE_S + 1
    assert scene.post("/readyz", method="GET")[0] == 503


def test_a_channel_that_moves_is_followed(scene: Scene) -> None:
    """The next look reads the new release."""
    scene.publish(2, proof=proven.EMULATED)
    assert scene.placed(pod()) == ["pi-1"]
    scene.look()
    assert scene.placed(pod()) == []


def test_no_release_at_all(tmp_path: Path) -> None:
    """A pod that follows the channel waits until there is one."""
    found = Scene(tmp_path, FolderStore(tmp_path / "registry"), Listing({NODE: [pi()]}))
    assert found.placed(pod()) == []
    (said,) = found.reasons(pod())
    assert "there is no channel" in said


MALFORMED = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "nested without end": b"[" * 100_000,
    "no pod": b'{"NodeNames": ["a"]}',
    "a pod that is none": b'{"Pod": 1, "NodeNames": ["a"]}',
    "labels that are none": b'{"Pod": {"metadata": {"labels": [1]}}, "NodeNames": ["a"]}',
    "annotations that are no texts": b'{"Pod": {"metadata": {"annotations": {"a": 1}}}, "NodeNames": ["a"]}',
    "containers that are none": b'{"Pod": {"spec": {"containers": 5}}, "NodeNames": ["a"]}',
    "arguments that are none": b'{"Pod": {"spec": {"containers": [{"args": 5}]}}, "NodeNames": ["a"]}',
    "whole nodes": b'{"Pod": {}, "Nodes": {"items": []}}',
    "names that are none": b'{"Pod": {}, "NodeNames": [1]}',
    "too many names": json.dumps({"Pod": {}, "NodeNames": ["a"] * (MAX_NODES + 1)}).encode(),
    "too much": b'{"Pod": {}, "NodeNames": ["a"]}' + b" " * MAX_BODY,
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_not_the_protocol_is_told(case: str, scene: Scene) -> None:
    """A filter answers with an error, so that the pod waits; a prioritize with a status."""
    status, body = scene.post("/filter", MALFORMED[case])
    answer = json.loads(body)
    assert (status, answer["NodeNames"]) == (200, [])
    assert answer["Error"]
    assert scene.post("/prioritize", MALFORMED[case])[0] == 400


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["Pod", "NodeNames", "metadata", "labels", "annotations", "spec", "containers", "args"]), inner)).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_body_is_read_or_refused(body: bytes) -> None:
    """Nothing but its own error comes out of the protocol, nor out of the pod it lets through."""
    from pipeline.control.scheduler import pods

    try:
        asked = protocol.parse(body)
    except MalformedError:
        return
    pods.parse(asked.pod)


def test_keys_are_read_whatever_their_case() -> None:
    """Go writes `nodenames` or `NodeNames`, by version."""
    for keys in (("Pod", "NodeNames"), ("pod", "nodenames")):
        assert protocol.parse(json.dumps(dict(zip(keys, ({}, ["a"]), strict=True))).encode()).nodes == ("a",)


def test_figures_and_probes(scene: Scene) -> None:
    """Time, refusals by their kind, and what is known, for Prometheus; unknown paths and methods are told."""
    scene.ask("filter", pod())
    text = scene.post("/metrics", method="GET")[1].decode()
    assert 'edge_scheduler_refused_nodes_total{why="target"} 1.0' in text
    assert 'edge_scheduler_request_seconds_count{verb="filter"} 1.0' in text
    assert "edge_scheduler_nodes 2.0" in text
    assert "edge_scheduler_release_version 1.0" in text
    assert [scene.post(path, method=method)[0] for path, method in (
        ("/healthz", "GET"), ("/nothing", "GET"), ("/filter", "GET"), ("/healthz", "DELETE"),
    )] == [200, 404, 404, 405]  # fmt: skip
