"""The admission policy, its expressions evaluated as the API server does: what no verified release has is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.deploy import base
from pipeline.deploy.render import config_map
from pipeline.ports.kube import Object
from tests.support.deploys import BASE, Line, named, rendered, settings

cel = pytest.importorskip("cel", reason="evaluates CEL: pip install common-expression-language")
POLICY = named(base.load(BASE, ["admission"]), "ValidatingAdmissionPolicy", "edge-release-verified")["spec"]
Change = Callable[[Object], object]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """Release 2, which takes over from release 1."""
    line, site = Line(tmp_path_factory.mktemp("line")), settings(components=["admission", "scheduler"])
    return rendered(line.accepted(2), site, rendered(line.accepted(1), site))


def refused(document: Object, data: dict[str, str] | None) -> list[str]:
    """Return the messages of the validations that do not hold."""
    params: Object = {"metadata": {"name": "admitted"}} | ({} if data is None else {"data": data})
    context: dict[str, Any] = {"object": document, "params": params, "variables": {}}
    for variable in POLICY["variables"]:
        context["variables"][variable["name"]] = cel.evaluate(variable["expression"], context)
    return [v["message"] for v in POLICY["validations"] if cel.evaluate(v["expression"], context) is not True]


def pod_of(document: Object) -> Object:
    """Return the pod that a workload's controller makes."""
    return {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(document["spec"]["template"])}


def test_what_is_rendered_is_admitted(documents: list[Object]) -> None:
    """Every workload, and every pod of it."""
    data = config_map(documents, "admitted")
    workloads = [d for d in documents if d["kind"] in {"Deployment", "StatefulSet"}]
    assert len(workloads) == 6
    for document in workloads:
        assert refused(document, data) == []
        assert refused(pod_of(document), data) == []


def test_the_release_before_is_admitted_still(tmp_path: Path) -> None:
    """Its pods may have to be made again while the new one takes over; those of a stranger may not."""
    line, site = Line(tmp_path), settings(components=["admission"])
    first = rendered(line.accepted(1), site)
    both = config_map(rendered(line.accepted(2), site, first), "admitted")
    assert refused(pod_of(named(first, "StatefulSet", "node")), both) == []
    stranger = rendered(line.accepted(9), site)
    assert RELEASE in refused(pod_of(named(stranger, "StatefulSet", "node")), both)


def container(pod: Object) -> Object:
    found: Object = pod["spec"]["containers"][0]
    return found


def other(pod: Object, what: str) -> None:
    pod["metadata"]["annotations"][f"edge-release.dev/{what}"] = "0" * 64


def disguised(pod: Object) -> None:
    """A server that does not say that it is one."""
    pod["metadata"] = {"labels": {}}


IMAGE, COMMAND, RELEASE, MODEL, SAYS = (v["message"] for v in POLICY["validations"])
REFUSED = [
    pytest.param(lambda p: container(p).update(image="registry.example/edge-release:latest"), IMAGE, id="an image by a tag"),
    pytest.param(lambda p: container(p).update(image=f"registry.example/edge-release@sha256:{'f' * 64}"), IMAGE, id="another image"),
    pytest.param(lambda p: container(p).update(image=f"evil.example/edge-release@sha256:{'a' * 64}"), IMAGE, id="another registry"),
    pytest.param(lambda p: p["spec"].update(initContainers=[{"name": "i", "image": "busybox"}]), IMAGE, id="an image at the start"),
    pytest.param(lambda p: p["spec"].update(ephemeralContainers=[{"name": "e", "image": "busybox"}]), IMAGE, id="an image for debugging"),
    pytest.param(lambda p: container(p).update(command=["sh"]), COMMAND, id="another program"),
    pytest.param(lambda p: other(p, "manifest"), RELEASE, id="a release that was not verified"),
    pytest.param(lambda p: p["metadata"]["annotations"].pop("edge-release.dev/manifest"), RELEASE, id="no release"),
    pytest.param(lambda p: other(p, "model"), MODEL, id="a model of no release"),
    pytest.param(lambda p: container(p)["args"].append(f"--manifest={'0' * 64}"), SAYS, id="another release in the arguments"),
    pytest.param(lambda p: container(p)["args"].append("--channel=dev"), SAYS, id="a channel"),
    pytest.param(lambda p: container(p)["args"].append("--trust=/var/lib/mine.yaml"), SAYS, id="other trust"),
    pytest.param(lambda p: container(p).pop("args"), SAYS, id="no arguments"),
    pytest.param(disguised, RELEASE, id="a server in disguise"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_is_refused(documents: list[Object], change: Change, message: str) -> None:
    """Each with its reason."""
    pod = pod_of(named(documents, "StatefulSet", "node"))
    change(pod)
    assert message in refused(pod, config_map(documents, "admitted"))


@pytest.mark.parametrize("data", [None, {}], ids=["no data", "empty"])
def test_without_a_verified_release_everything_is_refused(documents: list[Object], data: dict[str, str] | None) -> None:
    """An empty list admits nothing."""
    assert IMAGE in refused(pod_of(named(documents, "Deployment", "gateway")), data)


def test_a_job_is_looked_into(documents: list[Object]) -> None:
    """The pods of a CronJob lie one level deeper."""
    template = copy.deepcopy(named(documents, "Deployment", "gateway")["spec"]["template"])
    job: Object = {"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": template}}}}
    assert refused(job, config_map(documents, "admitted")) == []
    container(template)["image"] = "busybox"
    assert IMAGE in refused(job, config_map(documents, "admitted"))
