"""The port to Kubernetes, against a real API server: field managers, races, scale, evictions, events, errors.

KUBECONFIG names any cluster in which the tests may make namespaces of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.errors import ToolError
from pipeline.ports.kube import (
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    LEASE,
    POD,
    Cluster,
    Evicted,
    FieldConflict,
    Kind,
    Object,
    event,
    note,
)
from pipeline.ports.kube_api import VARIABLE, Limits, connect
from tests.support import kube

pytestmark = kube.MARKS
OURS, OTHER = "edge-release-test", "somebody-else"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    """The cluster."""
    return kube.cluster()


@pytest.fixture
def place(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own."""
    with kube.namespace(cluster) as name:
        yield name


def settings(place: str, **data: str) -> Object:
    """A ConfigMap."""
    return {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": place}, "data": data,
    }  # fmt: skip


def deployment(place: str, replicas: int) -> Object:
    """A Deployment of pods that go to the Pis."""
    labels = {"app": "sleeper"}
    container = {"name": "main", "image": "registry.example/sleeper:1"}
    pod = {"nodeSelector": {"edge": "pi"}, "terminationGracePeriodSeconds": 0, "containers": [container]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "sleeper", "namespace": place},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def lease(place: str, holder: str) -> Object:
    """A Lease."""
    return {
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "leader", "namespace": place},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15},
    }  # fmt: skip


def test_apply_is_idempotent_and_leaves_what_others_own(cluster: Cluster, place: str) -> None:
    """Applied twice an object stays as it is, version and all, and fields of another manager stay."""
    first = cluster.apply(settings(place, a="1"), manager=OURS).object
    again = cluster.apply(settings(place, a="1"), manager=OURS).object
    assert first
    assert again
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    cluster.apply(settings(place, b="2"), manager=OTHER)
    cluster.apply(settings(place, a="3"), manager=OURS)
    found = cluster.find(CONFIG_MAP, "settings", place)
    assert found
    assert found["data"] == {"a": "3", "b": "2"}


def test_a_conflict_names_manager_and_field_and_changes_nothing(cluster: Cluster, place: str) -> None:
    """A field that another manager owns is not taken, unless forced."""
    cluster.apply(settings(place, a="theirs", b="theirs"), manager=OTHER)
    ours = settings(place, a="ours", b="ours")
    done = cluster.apply(ours, manager=OURS)
    assert done.object is None
    assert done.conflicts == (FieldConflict(OTHER, ".data.a"), FieldConflict(OTHER, ".data.b"))
    found = cluster.find(CONFIG_MAP, "settings", place)
    assert found
    assert found["data"] == {"a": "theirs", "b": "theirs"}
    assert cluster.apply(ours, manager=OURS, force=True).object


def test_a_dry_run_changes_nothing(cluster: Cluster, place: str) -> None:
    """What a dry run returns has the server's defaults, and is not stored."""
    done = cluster.apply(deployment(place, 1), manager=OURS, dry_run=True)
    assert done.object
    assert done.object["spec"]["progressDeadlineSeconds"] == 600
    assert cluster.find(DEPLOYMENT, "sleeper", place) is None


def test_one_of_two_who_create_or_replace_is_first(cluster: Cluster, place: str) -> None:
    """The later one learns it from the answer, not from an error."""
    mine = cluster.create(lease(place, "me"))
    assert mine
    assert cluster.create(lease(place, "you")) is None
    yours = copy.deepcopy(mine)
    mine["spec"]["holderIdentity"], yours["spec"]["holderIdentity"] = "me again", "you"
    assert cluster.replace(mine)
    assert cluster.replace(yours) is None
    found = cluster.find(LEASE, "leader", place)
    assert found
    assert found["spec"]["holderIdentity"] == "me again"
    assert cluster.delete(LEASE, "leader", place)
    assert not cluster.delete(LEASE, "leader", place)
    assert cluster.replace(mine) is None


def test_scale_is_changed_only_on_what_was_seen(cluster: Cluster, place: str) -> None:
    """A change based on an older version is refused; an absent object has no scale."""
    cluster.apply(deployment(place, 0), manager=OURS)
    seen = cluster.scale(DEPLOYMENT, "sleeper", place)
    assert seen
    assert seen.wanted == 0
    assert cluster.set_scale(DEPLOYMENT, "sleeper", place, 2)
    assert not cluster.set_scale(DEPLOYMENT, "sleeper", place, 3, seen.version)
    now = cluster.scale(DEPLOYMENT, "sleeper", place)
    assert now
    assert now.wanted == 2
    assert cluster.scale(DEPLOYMENT, "nobody", place) is None
    assert not cluster.set_scale(DEPLOYMENT, "nobody", place, 1)


def test_annotations_come_and_go(cluster: Cluster, place: str) -> None:
    """A patch sets some and takes others away; of an absent object it says so."""
    cluster.create(settings(place))
    cluster.patch(CONFIG_MAP, "settings", place, note({"one": "1", "two": "2"}, {"label": "l"}))
    found = cluster.patch(CONFIG_MAP, "settings", place, note({"one": None}))
    assert found
    assert found["metadata"]["annotations"] == {"two": "2"}
    assert [o["metadata"]["name"] for o in cluster.find_all(CONFIG_MAP, place, labels="label=l")] == ["settings"]
    assert cluster.patch(CONFIG_MAP, "nobody", place, note({"one": "1"})) is None


def test_an_eviction_waits_for_the_budget(cluster: Cluster, place: str) -> None:
    """A pod that a PodDisruptionBudget needs is not evicted; one more, and one may go; what is gone is said to be."""
    kube.needs_nodes(cluster, kube.PIS, 1)
    version = "policy/v1" if cluster.serves(Kind("policy/v1", "PodDisruptionBudget")) else "policy/v1beta1"
    budget = {
        "apiVersion": version, "kind": "PodDisruptionBudget", "metadata": {"name": "sleeper", "namespace": place},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "sleeper"}}},
    }  # fmt: skip
    cluster.apply(budget, manager=OURS)
    cluster.apply(deployment(place, 1), manager=OURS)

    def allowed() -> int | None:
        found = cluster.find(Kind(version, "PodDisruptionBudget"), "sleeper", place)
        status = (found or {}).get("status") or {}
        return status.get("disruptionsAllowed") if status.get("currentHealthy") else None

    kube.eventually(lambda: allowed() == 0)
    pod = cluster.find_all(POD, place, labels="app=sleeper")[0]["metadata"]["name"]
    assert cluster.evict(place, pod) is Evicted.BLOCKED
    cluster.set_scale(DEPLOYMENT, "sleeper", place, 2)
    kube.eventually(lambda: allowed() == 1)
    assert cluster.evict(place, pod, grace_s=0) is Evicted.ACCEPTED
    kube.eventually(lambda: cluster.find(POD, pod, place) is None)
    assert cluster.evict(place, pod) is Evicted.ABSENT


def test_an_event_is_found_with_its_object(cluster: Cluster, place: str) -> None:
    """An event carries reason, message and what it is about."""
    about = cluster.create(settings(place))
    assert about
    cluster.create(event(about, component=OURS, reason="Tested", message="m" * 2000, now=NOW, warning=True))
    (found,) = cluster.find_all(EVENT, place, fields="involvedObject.name=settings")
    assert (found["type"], found["reason"], len(found["message"])) == ("Warning", "Tested", 1024)
    assert found["involvedObject"]["uid"] == about["metadata"]["uid"]


def test_long_lists_come_in_pages(cluster: Cluster, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every object is there once, with its kind."""
    for i in range(7):
        document = settings(place)
        document["metadata"]["name"] = f"settings-{i}"
        cluster.create(document)
    monkeypatch.setattr("pipeline.ports.kube_api._PAGE", 3)
    found = [o for o in cluster.find_all(CONFIG_MAP, place) if o["metadata"]["name"].startswith("settings")]
    assert sorted(o["metadata"]["name"] for o in found) == [f"settings-{i}" for i in range(7)]
    assert {o["kind"] for o in found} == {"ConfigMap"}


def test_what_is_refused_says_why_and_what_to_do(cluster: Cluster, place: str) -> None:
    """An unknown kind, an absent namespace and an invalid object each end in one error with a hint."""
    assert not cluster.serves(Kind("example.org/v1", "Nothing"))
    with pytest.raises(ToolError, match="does not serve"):
        cluster.find_all(Kind("example.org/v1", "Nothing"))
    with pytest.raises(ToolError, match="no-such-place") as caught:
        cluster.create(settings("no-such-place"))
    assert "namespace" in caught.value.hint
    document = deployment(place, 1)
    document["spec"]["template"]["metadata"]["labels"] = {"app": "other"}
    with pytest.raises(ToolError, match="selector"):
        cluster.apply(document, manager=OURS)


def test_an_unknown_identity_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> None:
    """A token that the server does not know gives an error without the token."""
    import os

    import yaml

    config = yaml.safe_load(Path(os.environ[VARIABLE]).read_text())
    for user in config["users"]:
        user["user"] = {"token": "very-secret-token"}
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    # The client reads the variable when it is first imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    with pytest.raises(ToolError) as caught:
        connect().find_all(POD)
    assert "very-secret-token" not in str(caught.value)
    assert "log in" in caught.value.hint


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is gone ends in one error that says where it was looked for."""
    path = tmp_path / "config"
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"
        "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:9'}}]\nusers: [{name: u, user: {token: t}}]\n"
    )
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    with pytest.raises(ToolError, match=r"127\.0\.0\.1:9"):
        connect(limits=Limits(1, 1, 0)).find_all(POD)


def test_changes_are_told_as_they_happen(cluster: Cluster, place: str) -> None:
    """A watch begins with what is there; then it tells of what is new, changed and gone, over its own ends."""
    labels = "edge-release-test/watched=" + place.rpartition("-")[2]
    key, value = labels.split("=")

    def watched(name: str) -> Object:
        document = settings(place)
        document["metadata"] |= {"name": name, "labels": {key: value}}
        return document

    cluster.create(watched("first"))
    changes = cluster.watch(CONFIG_MAP, labels=labels, seconds=1)
    assert [(c.object["metadata"]["name"], c.gone) for c in next(changes)] == [("first", False)]
    assert next(changes) == []  # a second without any
    cluster.create(watched("second"))
    cluster.patch(CONFIG_MAP, "first", place, {"data": {"a": "b"}})
    cluster.delete(CONFIG_MAP, "second", place)
    told = [change for _ in range(8) for change in next(changes)]
    assert [(c.object["metadata"]["name"], c.object.get("data"), c.gone) for c in told] == [
        ("second", None, False), ("first", {"a": "b"}, False), ("second", None, True),
    ]  # fmt: skip
    assert told[0].object["kind"] == "ConfigMap"
