"""The controller before real gateways over mutual TLS: what it sees, what it pushes, and what stays when it is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.control.actions import SetPolicy
from pipeline.peers.role import Role
from tests.support import pki, prometheus
from tests.support.controllers import ControllerProcess, replayed
from tests.support.gateway_process import GatewayProcess, site
from tests.support.upstreams import says

BUSY, CALM = {"cpu": 0.95}, {"cpu": 0.1}


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[ControllerProcess]:
    """A controller that is not started yet."""
    made = ControllerProcess(tmp_path)
    yield made
    made.kill()


def play(root: Path, scenario: Callable[[GatewayProcess], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        async with site(root, {"pi-1": says("a"), "pi-2": says("b")}, {"gpu": says("c")}) as at:
            await at.start_with_admin(**settings)
            await scenario(at)

    asyncio.run(run())


def flags(at: GatewayProcess, *roles: Role) -> tuple[str, ...]:
    folder = pki.folder(at.root / "pki/controller", at.authority, *(roles or (Role.CONTROLLER,)))
    return ("--tls", str(folder), "--no-kubernetes")


def known(at: GatewayProcess) -> dict[str, Any]:
    url = f"https://localhost:{at.admin_port}"
    return {"gateways": [{"name": "gateway-1", "url": url}], "pools": [{"name": "nvlink", "gpus": 0}]}


async def policy(at: GatewayProcess) -> dict[str, Any]:
    status, found = await at.admin(at.caller(Role.CONTROLLER), "GET", "/admin/policy")
    assert status == 200
    return dict(found)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while not await holds():
            await asyncio.sleep(0.2)


def turn(at: GatewayProcess, status: dict[str, Any]) -> None:
    for name in ("pi-1", "pi-2"):
        at.servers[name].status = status


def test_a_busy_edge_is_told_to_offload_and_a_calm_one_to_stop(tmp_path: Path, controller: ControllerProcess) -> None:
    """The policy is pushed over mutual TLS, holds when the controller is killed, and ends once another one sees calm."""

    async def scenario(at: GatewayProcess) -> None:
        turn(at, BUSY)
        await asyncio.to_thread(controller.start, *flags(at), **known(at))
        await until(lambda: is_cpu(at, 0.65))
        controller.kill()
        turn(at, CALM)
        assert (await policy(at))["cpu"] == 0.65
        status, told = replayed(controller.decisions)
        assert (status, told["same"]) == (0, told["rounds"])
        await asyncio.to_thread(controller.start, *flags(at), **known(at))
        await until(lambda: is_cpu(at, 0.8))
        pushed = [a for r in controller.rounds for a in r.actions if isinstance(a, SetPolicy)]
        assert [a.reason for a in pushed] == ["edge_busy", "edge_calm"]
        assert await asyncio.to_thread(controller.stop) == 0

    play(tmp_path, scenario)


def test_changed_settings_are_taken_over(tmp_path: Path, controller: ControllerProcess) -> None:
    """A file that cannot be used changes nothing; a new policy in it is the gateways' soon, without a restart."""

    async def scenario(at: GatewayProcess) -> None:
        turn(at, CALM)
        await asyncio.to_thread(controller.start, *flags(at), **known(at))
        assert (await policy(at))["cpu"] == 0.8
        controller.argv(**known(at), policy={"cpu": "much"})
        await asyncio.to_thread(controller.until, lambda: "the settings stay as they were" in controller.log)
        controller.argv(**known(at), policy={"cpu": 0.5})
        await until(lambda: is_cpu(at, 0.5))
        status, told = replayed(controller.decisions)
        assert (status, told["same"]) == (0, told["rounds"])
        assert await asyncio.to_thread(controller.stop) == 0

    play(tmp_path, scenario)


async def is_cpu(at: GatewayProcess, cpu: float) -> bool:
    return bool((await policy(at))["cpu"] == cpu)


def test_what_it_sees_is_what_gateways_and_servers_say(tmp_path: Path, controller: ControllerProcess) -> None:
    """One round tells of every node and server, rates of requests by variant, and what is in force."""

    async def scenario(at: GatewayProcess) -> None:
        turn(at, CALM)
        asking = asyncio.create_task(ask_on(at))
        found = await asyncio.to_thread(controller.once, *flags(at), "--dry-run", "--json", **known(at))
        asking.cancel()
        assert found.returncode == 0, found.stderr
        told = json.loads(found.stdout)
        (gateway,) = told["state"]["gateways"]
        assert gateway["policy"]["version"] == 1
        assert gateway["qps"]["large-x86_64"] > 0
        assert (gateway["missed_qps"], gateway["core_usable"]) == (0.0, 1)
        assert gateway["core_round_trip_ms"] > 0
        assert sorted((n["name"], n["ready"], n["cpu"]) for n in told["state"]["nodes"]) == [
            ("pi-1", True, 0.1),
            ("pi-2", True, 0.1),
        ]
        (server,) = told["state"]["servers"]
        assert (server["name"], server["ready"], server["nvlink"]) == ("gpu", True, None)
        assert told["actions"] == []

    play(tmp_path, scenario)


async def ask_on(at: GatewayProcess) -> None:
    while True:
        await at.went("where?", model="large")
        await asyncio.sleep(0.05)


def test_another_role_changes_nothing(tmp_path: Path, controller: ControllerProcess) -> None:
    """A certificate that is not the controller's reads no policy, so none is pushed, and that is told."""

    async def scenario(at: GatewayProcess) -> None:
        turn(at, BUSY)
        found = await asyncio.to_thread(controller.once, *flags(at, Role.GATEWAY), "--json", **known(at))
        told = json.loads(found.stdout)
        assert told["actions"] == []
        assert any("403" in problem for problem in told["unanswered"].values())
        assert (await policy(at))["version"] == 1

    play(tmp_path, scenario)


def test_gateways_of_one_name_show_the_certificate_of_another(tmp_path: Path, controller: ControllerProcess) -> None:
    """Each address is asked by itself, under the name that all share; under another one it is unknown."""

    async def scenario(at: GatewayProcess) -> None:
        for name, policies in (("localhost", [1]), ("elsewhere", [])):
            each = {"name": "gw", "url": f"https://127.0.0.1:{at.admin_port}", "every": True, "tls_name": name}
            wanted = {**known(at), "gateways": [each]}
            said = await asyncio.to_thread(controller.once, *flags(at), "--dry-run", "--json", **wanted)
            (gateway,) = json.loads(said.stdout)["state"]["gateways"]
            assert gateway["name"] == "gw-127.0.0.1"
            assert [found["version"] for found in [gateway["policy"]] if found] == policies

    play(tmp_path, scenario)


def test_the_last_writer_is_left_alone(tmp_path: Path, controller: ControllerProcess) -> None:
    """What a person pushes stays in force, though the edge is busy."""

    async def scenario(at: GatewayProcess) -> None:
        turn(at, BUSY)
        await asyncio.to_thread(controller.start, *flags(at), **known(at))
        await until(lambda: is_cpu(at, 0.65))
        theirs = {"version": 99, "cpu": 0.42}
        assert (await at.admin(at.caller(Role.CONTROLLER), "PUT", "/admin/policy", theirs))[0] == 200
        before = len(controller.rounds)
        await asyncio.to_thread(controller.until, lambda: len(controller.rounds) > before + 3)
        assert (await policy(at))["cpu"] == 0.42

    play(tmp_path, scenario)


def test_a_gateway_that_does_not_answer_is_unknown(tmp_path: Path, controller: ControllerProcess) -> None:
    """Nothing is decided for it, the figures say so, and it is steered again when it is back."""

    async def scenario(at: GatewayProcess) -> None:
        turn(at, BUSY)
        await asyncio.to_thread(at.stop)
        await asyncio.to_thread(controller.start, *flags(at), **known(at))
        await asyncio.to_thread(controller.until, lambda: len(controller.rounds) > 2)
        assert all(not r.actions and r.state.gateways[0].policy is None for r in controller.rounds)
        _, text = controller.ask("/metrics")
        assert "edge_controller_unanswered 4.0" in text
        assert "edge_controller_leader 1.0" in text
        await at.start_with_admin()
        await until(lambda: is_cpu(at, 0.65))
        _, text = controller.ask("/metrics")
        assert 'edge_controller_actions_total{kind="set_policy",reason="edge_busy"} 1.0' in text
        assert 'edge_controller_desired_replicas{pool="nvlink"} 0.0' in text

    play(tmp_path, scenario)


@pytest.mark.prometheus
@pytest.mark.skipif(bool(prometheus.missing()), reason=prometheus.missing())
def test_a_prometheus_tells_the_same(tmp_path: Path, controller: ControllerProcess) -> None:
    """Rates, distance, begun answers and burn rates come from one Prometheus; the policy stays the gateway's to tell."""

    async def scenario(at: GatewayProcess) -> None:
        asking = asyncio.create_task(ask_on(at))
        targets = {"gateway": [f"127.0.0.1:{at.port}"]}
        entry = {"name": "gateway-1", "url": f"http://127.0.0.1:{at.port}"}
        with prometheus.prometheus(tmp_path, targets) as watcher:
            for expression in (
                "sum(rate(gateway_variant_total[1m]))",
                'slo:burn:5m{slo="global_p95"}',
                'slo:asked:rate5m{slo="global_p95"} * 300 >= 5',
            ):
                assert await asyncio.to_thread(watcher.eventually, expression, 60)
            said = await asyncio.to_thread(
                controller.once, "--no-kubernetes", "--dry-run", "--json", "--prometheus",
                f"http://127.0.0.1:{watcher.port}", gateways=[entry], looking={"burn_requests": 5},
            )  # fmt: skip
        asking.cancel()
        assert said.returncode == 0, said.stderr
        (gateway,) = json.loads(said.stdout)["state"]["gateways"]
        assert gateway["qps"]["large-x86_64"] > 0
        assert (gateway["missed_qps"], gateway["core_usable"], gateway["policy"]) == (0.0, 1, None)
        assert gateway["core_round_trip_ms"] > 0
        assert "global_p95" in gateway["burn"]

    async def run() -> None:
        async with site(tmp_path, {"pi-1": says("a"), "pi-2": says("b")}, {"gpu": says("c")}) as at:
            await at.start()
            await scenario(at)

    asyncio.run(run())
