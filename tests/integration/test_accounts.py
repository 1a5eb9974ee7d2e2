"""Whether the accounts of manifests/k8s may do what their programs do, asked of a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.ports.kube import Cluster
from tests.support import kube

pytestmark = kube.MARKS
MANIFESTS = Path(__file__).parents[2] / "manifests/k8s"
FILES = MANIFESTS / "base/accounts.yaml", MANIFESTS / "components/scheduler/scheduler.yaml"
RULES = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
LEASES, APPS = "coordination.k8s.io", "apps"


def placed(value: Any, place: str, at: str = "") -> Any:
    """Return a document in another namespace; what belongs to the cluster is named after it."""
    if isinstance(value, dict):
        return {k: placed(v, place, k) for k, v in value.items()}
    if isinstance(value, list):
        return [placed(v, place, at) for v in value]
    if value == "edge-release" or (at == "name" and str(value).startswith("edge-release-")):
        return place + value.removeprefix("edge-release")
    return value


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    """The cluster."""
    return kube.cluster()


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> Iterator[str]:
    """A namespace with the accounts and what is allowed to them."""
    with kube.namespace(cluster) as name:
        for document in (d for path in FILES for d in yaml.safe_load_all(path.read_text()) if d["kind"] in RULES):
            cluster.create(placed(document, name))
        yield name


@pytest.mark.parametrize(
    ("account", "allowed", "verb", "group", "resource", "name"),
    [
        # kube-scheduler leads by its own lease, and by no other
        ("scheduler", True, "create", LEASES, "leases", ""),
        ("scheduler", True, "get", LEASES, "leases", "edge-release-scheduler"),
        ("scheduler", True, "update", LEASES, "leases", "edge-release-scheduler"),
        ("scheduler", False, "update", LEASES, "leases", "edge-release-controller"),
        ("scheduler", True, "create", "", "pods/binding", "large-0"),
        ("scheduler", True, "list", "", "nodes", None),
        ("controller", True, "update", LEASES, "leases", "edge-release-controller"),
        ("controller", True, "get", APPS, "statefulsets", "large"),
        ("controller", True, "update", APPS, "statefulsets/scale", "large"),
        ("controller", False, "update", APPS, "statefulsets", "large"),
        ("controller", True, "create", "", "pods/eviction", "job-0"),
        ("controller", False, "delete", "", "pods", "job-0"),
        ("controller", True, "create", "", "events", ""),
        ("controller", True, "list", "policy", "poddisruptionbudgets", ""),
        ("controller", True, "list", "", "nodes", None),
        ("controller", False, "list", "", "secrets", ""),
        ("serving", False, "list", "", "pods", ""),
    ],
)  # fmt: skip
def test_accounts_may_do_what_they_must(
    cluster: Cluster, place: str, account: str, allowed: bool, verb: str, group: str, resource: str, name: str | None
) -> None:
    """Nothing of the cluster's own (`name` None) but what is named; in their namespace, what they are for."""
    kind, _, part = resource.partition("/")
    asked = {"verb": verb, "group": group, "resource": kind, "subresource": part, "name": name or ""}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "metadata": {},
        "spec": {
            "user": f"system:serviceaccount:{place}:{account}",
            "resourceAttributes": {**asked, **({} if name is None else {"namespace": place})},
        },
    }
    assert (cluster.create(review) or {})["status"]["allowed"] is allowed
