"""The admin port over real TLS: whom it takes, and that its orders hold, over restarts too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pipeline.peers.role import Role
from pipeline.serving.gateway.overrides import FILE
from tests.support import pki
from tests.support.gateway_process import GatewayProcess, site
from tests.support.upstreams import says


def play(root: Path, scenario: Callable[[GatewayProcess], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        async with site(root, {"pi-1": says("a"), "pi-2": says("b")}, {"gpu": says("c")}) as at:
            await at.start_with_admin(**settings)
            await scenario(at)

    asyncio.run(run())


def logged(at: GatewayProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in at.log.splitlines() if line.startswith('{"admin"')]


def test_orders_are_the_controllers_alone(tmp_path: Path) -> None:
    """No certificate and another authority's end in the handshake, other roles are refused and logged."""

    async def scenario(at: GatewayProcess) -> None:
        alien = at.caller(Role.CONTROLLER, authority=pki.authority())
        for nobody in (at.public(), alien, at.caller()):
            with pytest.raises((aiohttp.ClientError, OSError)):
                await at.admin(nobody, "GET", "/admin/policy")
        assert logged(at) == []
        for role in (Role.GATEWAY, Role.CLIENT, Role.NODE):
            status, told = await at.admin(at.caller(role), "PUT", "/admin/policy", {"version": 9})
            assert (status, told["error"]["code"]) == (403, "not_allowed")
        status, told = await at.admin(at.caller(Role.CONTROLLER), "GET", "/admin/policy")
        assert (status, told["version"], told["tiny_prompt_tokens"]) == (200, 1, 64)
        assert [line["status"] for line in logged(at)] == [403, 403, 403, 200]
        assert {line["admin"] for line in logged(at)} == {"commonName=test"}

    play(tmp_path, scenario)


def test_what_operators_look_at_moves_to_the_admin_port(tmp_path: Path) -> None:
    """Metrics and status are for every certificate of the authority, and no longer for clients."""

    async def scenario(at: GatewayProcess) -> None:
        prometheus = at.caller(Role.CLIENT)
        status, text = await at.admin(prometheus, "GET", "/metrics")
        assert (status, "gateway_policy_version 1.0" in text) == (200, True)
        status, told = await at.admin(prometheus, "GET", "/status")
        assert (status, told["ready"]) == (200, True)
        for path, expected in (("/metrics", 404), ("/status", 404), ("/admin/policy", 404), ("/readyz", 200)):
            async with at.session.get(f"http://localhost:{at.port}{path}") as answer:
                assert answer.status == expected, path
        with pytest.raises((aiohttp.ClientError, OSError)):
            await at.admin(at.public(), "GET", "/metrics")

    play(tmp_path, scenario)


def test_a_pushed_policy_decides_the_next_request(tmp_path: Path) -> None:
    """It is in force at once and over restarts, until the settings have a newer one."""

    async def scenario(at: GatewayProcess) -> None:
        me = at.caller(Role.CONTROLLER)
        assert (await at.went())[1] != "long_prompt"
        pushed = {"version": 5, "tiny_prompt_tokens": 1}
        status, told = await at.admin(me, "PUT", "/admin/policy", pushed)
        assert (status, told["version"], told["queue_wait_ms"]) == (200, 5, 100.0)
        assert await at.went() == ("gpu", "long_prompt")
        assert (await at.admin(me, "PUT", "/admin/policy", pushed))[0] == 200
        assert [line["did"] for line in logged(at)] == ["policy 5 instead of 1", "policy 5 is in force already"]
        await asyncio.to_thread(at.stop)
        await at.start_with_admin(policy={"version": 4})
        assert await at.went() == ("gpu", "long_prompt")
        await asyncio.to_thread(at.stop)
        await at.start_with_admin(policy={"version": 6})
        assert (await at.went())[1] != "long_prompt"
        assert (await at.admin(me, "GET", "/admin/policy"))[1]["version"] == 6

    play(tmp_path, scenario)


def test_a_policy_that_may_not_be_is_refused_with_reasons(tmp_path: Path) -> None:
    """Unknown keys, values out of bounds, what is no policy, and older or equal versions change nothing."""
    cases = [
        ({"version": 9, "tiny": 1}, 400, "invalid_policy", "unknown key 'tiny'"),
        ({"version": 9, "cpu": 1.5}, 400, "invalid_policy", "cpu: Input should be less than or equal to 1"),
        ({"version": 9, "queue_wait_ms": "100"}, 400, "invalid_policy", "queue_wait_ms"),
        ([], 400, "invalid_policy", "the whole file"),
        (b'{"version": 9, "cpu": NaN}', 400, "invalid_policy", "cpu"),
        (b"{", 400, "invalid_json", "no JSON"),
        (b"\xff", 400, "invalid_json", "no JSON"),
        ({"version": 3, "cpu": 0.5}, 409, "policy_not_newer", "policy 3 is in force"),
        ({"version": 2}, 409, "policy_not_newer", "a higher version than 2"),
        ({"cpu": 0.5}, 409, "policy_not_newer", "a higher version than 1"),
        (b" " * 5000, 413, "body_too_large", "a body has at most"),
    ]

    async def scenario(at: GatewayProcess) -> None:
        me = at.caller(Role.CONTROLLER)
        for body, status, code, reason in cases:
            found, told = await at.admin(me, "PUT", "/admin/policy", body)
            assert (found, told["error"]["code"]) == (status, code), body
            assert reason in told["error"]["message"]
        assert (await at.admin(me, "GET", "/admin/policy"))[1]["cpu"] == 0.8
        assert [line["status"] for line in logged(at)] == [*(status for _, status, _, _ in cases), 200]

    play(tmp_path, scenario, policy={"version": 3}, limits={"body_bytes": 4096})


def test_a_drained_endpoint_gets_no_request(tmp_path: Path) -> None:
    """It stays out over restarts, and what is taken back in gets requests again."""

    async def scenario(at: GatewayProcess) -> None:
        me = at.caller(Role.CONTROLLER)
        (there, _) = await at.went()
        (other,) = {"pi-1", "pi-2"} - {there}
        assert await at.admin(me, "POST", "/admin/drain", {"endpoint": there}) == (
            200, {"endpoint": there, "drained": True},
        )  # fmt: skip
        assert {(await at.went())[0] for _ in range(4)} == {other}
        told = (await at.admin(me, "GET", "/admin/endpoints"))[1]["endpoints"]
        found = {e["name"]: (e["state"], e["drained"], e["usable"], e["url"]) for e in told}
        assert found[there] == ("draining", True, False, at.servers[there].url)
        assert found[other] == ("ready", False, True, at.servers[other].url)
        await asyncio.to_thread(at.stop)
        await at.start_with_admin()
        assert (await at.went())[0] == other
        await at.admin(me, "POST", "/admin/drain", {"endpoint": other})
        assert (await at.went())[0] == "gpu"
        await at.admin(me, "POST", "/admin/undrain", {"endpoint": there})
        assert (await at.went())[0] == there

    play(tmp_path, scenario)


def test_what_is_no_order_changes_nothing(tmp_path: Path) -> None:
    """It is refused in OpenAI's shape, and logged as one line."""
    cases: list[tuple[str, str, Any, int, str]] = [
        ("POST", "/admin/drain", {"endpoint": "pi-9"}, 404, "unknown_endpoint"),
        ("POST", "/admin/drain", {"endpoint": 1}, 400, "invalid_value"),
        ("POST", "/admin/drain", {"endpoint": "pi-1", "force": True}, 400, "invalid_value"),
        ("POST", "/admin/drain", b"", 400, "invalid_json"),
        ("GET", "/admin/drain", None, 405, "method_not_allowed"),
        ("DELETE", "/admin/policy", None, 405, "method_not_allowed"),
        ("GET", "/admin/%0A%7Bfake", None, 404, "not_found"),
        ("POST", "/v1/chat/completions", {}, 404, "not_found"),
    ]

    async def scenario(at: GatewayProcess) -> None:
        me = at.caller(Role.CONTROLLER)
        for method, path, body, status, code in cases:
            found, told = await at.admin(me, method, path, body)
            assert (found, told["error"]["code"]) == (status, code)
        told = (await at.admin(me, "GET", "/admin/endpoints"))[1]["endpoints"]
        assert not any(e["drained"] for e in told)
        wanted = [(method, status) for method, _, _, status, _ in cases]
        assert [(line["method"], line["status"]) for line in logged(at)] == [*wanted, ("GET", 200)]

    play(tmp_path, scenario)


def test_what_cannot_be_kept_is_not_in_force(tmp_path: Path) -> None:
    """A disk that takes nothing refuses orders with a reason; a file that is no override is told of and replaced."""

    async def scenario(at: GatewayProcess) -> None:
        me = at.caller(Role.CONTROLLER)
        folder = at.root / "state.json.gateway"
        order = ("PUT", "/admin/policy", {"version": 2, "tiny_prompt_tokens": 1})
        folder.rename(at.root / "away")
        folder.write_text("in the way")
        status, told = await at.admin(me, *order)
        assert (status, told["error"]["code"]) == (500, "not_kept")
        assert (await at.admin(me, "GET", "/admin/policy"))[1]["version"] == 1
        await asyncio.to_thread(at.stop)
        folder.unlink()
        (at.root / "away").rename(folder)
        (folder / FILE).write_text('{"schema_version": 1, "drained": "pi-1"}')
        await at.start_with_admin()
        assert "what operators changed is not in force" in at.log
        assert (await at.admin(me, *order))[0] == 200
        assert (await at.went())[0] == "gpu"

    play(tmp_path, scenario)
