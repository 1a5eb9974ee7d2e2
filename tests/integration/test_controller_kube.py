"""The controller on a real API server: replicas, batch that yields, and who of two acts.

Demand is that of a real gateway before scripted servers; pods run on the cluster's nodes, one of which has 4 GPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.control.actions import Evict, Scale
from pipeline.control.lead import Leader
from pipeline.control.scheduler.nodes import GPU
from pipeline.peers.role import Role
from pipeline.ports.kube import EVENT, LEASE, POD, STATEFUL_SET, Cluster, Kind, Object
from pipeline.ports.lease import Hold
from tests.support import kube, pki
from tests.support.controllers import ControllerProcess, replayed
from tests.support.gateway_process import GatewayProcess, site
from tests.support.upstreams import says

pytestmark = kube.MARKS
LABEL = "edge-release.dev/yields"
PRIORITY = Kind("scheduling.k8s.io/v1", "PriorityClass")
ANYWHERE = [{"operator": "Exists"}]


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    """The cluster."""
    return kube.cluster()


@pytest.fixture
def place(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own."""
    with kube.namespace(cluster) as name:
        yield name


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[ControllerProcess, ControllerProcess]]:
    """Two controllers that are not started yet."""
    found = ControllerProcess(tmp_path, "controller-1"), ControllerProcess(tmp_path, "controller-2")
    yield found
    for controller in found:
        controller.kill()


def workload(place: str, gpus: int = 0) -> Object:
    """A pool of large servers, of which none is asked for yet."""
    labels = {"app": "large"}
    container: Object = {"name": "main", "image": "registry.example/large:1"}
    if gpus:
        container["resources"] = {"limits": {GPU: str(gpus)}}
    pod = {"terminationGracePeriodSeconds": 0, "tolerations": ANYWHERE, "containers": [container]}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "large", "namespace": place},
        "spec": {
            "serviceName": "large",
            "replicas": 0,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def job(place: str, name: str, priority: str, gpus: int, **labels: str) -> Object:
    """A batch pod with GPUs that may yield."""
    container = {"name": "main", "image": "registry.example/batch:1", "resources": {"limits": {GPU: str(gpus)}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": place, "labels": {LABEL: "true", **labels}},
        "spec": {
            "priorityClassName": priority,
            "terminationGracePeriodSeconds": 0,
            "tolerations": ANYWHERE,
            "containers": [container],
        },
    }


def rules(at: GatewayProcess, place: str, gpus: int = 0, **more: Any) -> dict[str, Any]:
    pool = {"name": "nvlink", "namespace": place, "slots": 1, "service_s": 0.5, "most": 3, "gpus": gpus}
    return {
        "gateways": [{"name": "gateway-1", "url": f"https://localhost:{at.admin_port}"}],
        "pools": [pool],
        "scaling": {"down_s": 2.0, "idle_s": 2.0, "up_s": 1.0, "settle_s": 2.0},
        "eviction": {"namespaces": [place], "pause_s": 2.0},
        **more,
    }


def flags(at: GatewayProcess, place: str) -> tuple[str, ...]:
    folder = pki.folder(at.root / "pki/controller", at.authority, Role.CONTROLLER)
    return ("--tls", str(folder), "--lease", place)


def play(root: Path, scenario: Callable[[GatewayProcess], Awaitable[None]]) -> None:
    async def run() -> None:
        async with site(root, {"pi-1": says("a")}, {"gpu": says("c")}) as at:
            await at.start_with_admin()
            await scenario(at)

    asyncio.run(run())


@asynccontextmanager
async def asking(at: GatewayProcess) -> AsyncIterator[None]:
    """Ask for the large tier some ten times a second."""

    async def ask() -> None:
        while True:
            await at.went("where?", model="large")
            await asyncio.sleep(0.1)

    task = asyncio.create_task(ask())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def eventually(look: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(kube.eventually, look, 90)


def wanted(cluster: Cluster, place: str) -> int | None:
    found = cluster.scale(STATEFUL_SET, "large", place)
    return found and found.wanted


def told(cluster: Cluster, place: str, reason: str) -> list[str]:
    return [e["message"] for e in cluster.find_all(EVENT, place) if e["reason"] == reason]


def test_a_pool_grows_with_demand_and_ends_cold(
    cluster: Cluster, place: str, tmp_path: Path, pair: tuple[ControllerProcess, ControllerProcess]
) -> None:
    """Replicas follow the gateway's requests up to the most that is allowed, and go when nobody asks; events tell."""
    cluster.create(workload(place))
    controller = pair[0]

    async def scenario(at: GatewayProcess) -> None:
        async with asking(at):
            await asyncio.to_thread(controller.start, *flags(at, place), **rules(at, place))
            await eventually(lambda: wanted(cluster, place) == 3)
        await eventually(lambda: wanted(cluster, place) == 0)
        scaled = [a for r in controller.rounds for a in r.actions if isinstance(a, Scale)]
        assert scaled[0].reason == "demand"
        assert scaled[-1].reason == "cold"
        assert any("demand" in message for message in told(cluster, place, "Rescaled"))
        status, again = await asyncio.to_thread(replayed, controller.decisions)
        assert (status, again["same"]) == (0, again["rounds"])

    play(tmp_path, scenario)


def test_batch_yields_to_a_burst_as_far_as_budgets_allow(
    cluster: Cluster, place: str, tmp_path: Path, pair: tuple[ControllerProcess, ControllerProcess]
) -> None:
    """A replica without a place gets that of the pod that no budget keeps; the one that a budget keeps stays."""
    kube.needs_nodes(cluster, "gpu=nvlink", 1)
    suffix = secrets.token_hex(4)
    low, patient = f"batch-{suffix}", f"patient-{suffix}"
    # Without it the scheduler makes room by itself for pods of a higher priority, and does not promise to keep budgets.
    for name, number, policy in ((low, -10, "PreemptLowerPriority"), (patient, 0, "Never")):
        cluster.create(
            {
                "apiVersion": PRIORITY.api_version,
                "kind": PRIORITY.name,
                "metadata": {"name": name},
                "value": number,
                "preemptionPolicy": policy,
            }
        )
    pool = workload(place, gpus=2)
    pool["spec"]["template"]["spec"]["priorityClassName"] = patient
    cluster.create(pool)
    version = "policy/v1" if cluster.serves(Kind("policy/v1", "PodDisruptionBudget")) else "policy/v1beta1"
    cluster.create(
        {
            "apiVersion": version,
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "kept", "namespace": place},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"job": "kept"}}},
        }
    )
    for name in ("kept", "free"):
        cluster.create(job(place, name, low, 2, job=name))
    kube.eventually(lambda: all(_runs(p) for p in cluster.find_all(POD, place, labels=LABEL)))

    async def scenario(at: GatewayProcess) -> None:
        async with asking(at):
            await asyncio.to_thread(
                pair[0].start,
                *flags(at, place),
                **rules(at, place, gpus=2, eviction={"namespaces": [place], "pause_s": 2.0}),
            )
            await eventually(lambda: cluster.find(POD, "free", place) is None)
            await eventually(lambda: any(map(_runs, cluster.find_all(POD, place, labels="app=large"))))
            rounds = len(pair[0].rounds)
            await asyncio.to_thread(pair[0].until, lambda: len(pair[0].rounds) > rounds + 4)
        assert cluster.find(POD, "kept", place) is not None
        evicted = {a.pod for r in pair[0].rounds for a in r.actions if isinstance(a, Evict)}
        assert evicted == {"free"}
        assert told(cluster, place, "YieldsToBurst")

    try:
        play(tmp_path, scenario)
    finally:
        for name in (low, patient):
            cluster.delete(PRIORITY, name)


def test_another_one_leads_when_the_leader_is_killed(
    cluster: Cluster, place: str, tmp_path: Path, pair: tuple[ControllerProcess, ControllerProcess]
) -> None:
    """Of two one acts; after `kill -9` the other does, within some leases, and goes on from what is in force."""
    cluster.create(workload(place))

    async def scenario(at: GatewayProcess) -> None:
        async with asking(at):
            for controller in pair:
                await asyncio.to_thread(controller.start, *flags(at, place), **rules(at, place))
            await eventually(lambda: wanted(cluster, place) == 3)
            leader, follower = sorted(pair, key=lambda c: not leads(c))
            assert (leads(leader), leads(follower)) == (True, False)
            assert follower.rounds == []
            assert "edge_controller_desired_replicas{" not in follower.ask("/metrics")[1]
            leader.kill()
            await asyncio.to_thread(follower.until, lambda: leads(follower))
            await asyncio.to_thread(follower.until, lambda: len(follower.rounds) > 2)
            assert wanted(cluster, place) == 3
            assert [a.kind for r in follower.rounds for a in r.actions] == []
        await eventually(lambda: wanted(cluster, place) == 0)
        assert await asyncio.to_thread(follower.stop) == 0
        found = cluster.find(LEASE, "edge-release-controller", place)
        assert found is not None
        assert not found["spec"].get("holderIdentity")

    play(tmp_path, scenario)


def test_a_crash_between_actions_leaves_what_the_next_one_goes_on_from(
    cluster: Cluster, place: str, tmp_path: Path, pair: tuple[ControllerProcess, ControllerProcess]
) -> None:
    """Killed as soon as a decision is written down, again and again: its own log says the same, and the pool gets there."""
    cluster.create(workload(place))
    controller = pair[0]

    async def scenario(at: GatewayProcess) -> None:
        async with asking(at):
            for _ in range(3):
                written = len(controller.rounds)
                await asyncio.to_thread(controller.start, *flags(at, place), **rules(at, place))
                await asyncio.to_thread(controller.until, lambda written=written: len(controller.rounds) > written)
                controller.kill()
                assert 0 <= (wanted(cluster, place) or 0) <= 3
            await asyncio.to_thread(controller.start, *flags(at, place), **rules(at, place))
            await eventually(lambda: wanted(cluster, place) == 3)
        status, again = await asyncio.to_thread(replayed, controller.decisions)
        assert (status, again["same"]) == (0, again["rounds"])

    play(tmp_path, scenario)


def leads(controller: ControllerProcess) -> bool:
    return '"leads": true' in controller.ask("/readyz")[1]


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_is_taken_by_one_and_only_after_silence(cluster: Cluster, place: str) -> None:
    """Who renews keeps it, who cannot stops before another may begin, and who ends lets go."""
    clocks = Clock(), Clock()
    one, two = (
        Leader(Hold(cluster, place, "lease", name, 15.0, clock)) for name, clock in zip("ab", clocks, strict=True)
    )
    assert (one.look(), two.look()) == (True, False)
    clocks[1].now = 14.0
    assert (one.look(), two.look()) == (True, False)
    clocks[1].now = 28.0
    assert not two.look()
    clocks[0].now = 10.0
    assert not one.leads
    clocks[1].now = 29.0
    assert two.look()
    assert (one.look(), two.leads) == (False, True)
    found = cluster.find(LEASE, "lease", place)
    assert found is not None
    assert (found["spec"]["holderIdentity"], found["spec"]["leaseTransitions"]) == ("b", 1)
    two.end()
    assert not two.leads
    assert one.look()


def test_who_cannot_ask_the_cluster_does_not_lead(place: str, cluster: Cluster) -> None:
    """A leader that reaches the API server no longer stops to act by itself."""
    clock = Clock()
    leader = Leader(Hold(cluster, f"{place}-missing", "lease", "a", 15.0, clock))
    assert not leader.look()
    assert leader.problem


def _runs(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
