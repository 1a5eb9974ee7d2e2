"""A namespace of its own in the cluster that KUBECONFIG names, for each test that asks for one."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from pipeline.ports.kube import NAMESPACE, NODE, Cluster, Kind, Object
from pipeline.ports.kube_api import VARIABLE, connect

ENABLE = f"{VARIABLE} is not set: set it for a cluster with nodes labelled edge=pi and gpu=nvlink to test in, then: pytest -m kube"
MARKS = [pytest.mark.kube, pytest.mark.skipif(not os.environ.get(VARIABLE), reason=ENABLE)]
PIS = "edge=pi"

T = TypeVar("T")


@contextmanager
def namespace(cluster: Cluster, **labels: str) -> Iterator[str]:
    """Yield the name of a new namespace, and delete it in the end."""
    name = f"edge-release-test-{secrets.token_hex(4)}"
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    try:
        yield name
    finally:
        for kind in ("ClusterRole", "ClusterRoleBinding"):
            for bound in ("controller", "scheduler", "scheduler-volumes"):
                cluster.delete(Kind("rbac.authorization.k8s.io/v1", kind), f"{name}-{bound}")
        cluster.delete(Kind("scheduling.k8s.io/v1", "PriorityClass"), f"{name}-large")
        cluster.delete(NAMESPACE, name)


def needs_nodes(cluster: Cluster, selector: str, count: int) -> list[Object]:
    """Return the nodes of a selector; skips the test where there are too few."""
    found = cluster.find_all(NODE, labels=selector)
    if len(found) < count:
        pytest.skip(
            f"the cluster has {len(found)} nodes {selector}, this needs {count} (kube.sh nodes, kube.sh kubelet)"
        )
    return found


def eventually(look: Callable[[], T], seconds: float = 120) -> T:
    """Return what a look finds once it finds something; controllers take their own time."""
    until = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < until:
        time.sleep(0.2)
    assert found, f"nothing after {seconds:.0f} s"
    return found


def cluster() -> Cluster:
    """Return the cluster."""
    return connect()
