"""`GET /status`: JSON for programs, a page for browsers, and nothing in either that is nobody's business."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import yaml

from pipeline.serving.decision import Priority
from pipeline.serving.gateway.callers import add_key
from tests.support.gateways import LARGE, TINY, Running, chat, running
from tests.support.upstreams import closes, says


async def told(at: Running) -> dict[str, Any]:
    """Return the status as a program gets it."""
    reply = await at.ask(b"", "/status", method="GET")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    found: dict[str, Any] = reply.json
    return found


def test_the_whole_gateway_is_told_of(tmp_path: Path) -> None:
    """Release, policy, pools with quantiles, endpoints, objectives, and every decision with its reason."""

    async def scenario() -> None:
        async with running(tmp_path, edge={"pi": says("hello")}, nvlink={"gpu": says("large")}) as at:
            await at.ask(chat())
            await at.ask(chat(stream=True))
            await at.ask(chat(model="large"))
            await at.ask(chat(model=LARGE, sensitive=True))
            found = await told(at)
            assert (found["ready"], found["problems"], found["schema_version"]) == (True, [], 1)
            assert found["release"] == {
                "line": "demo", "channel": "dev", "version": 1, "expires": found["release"]["expires"], "problem": None,
            }  # fmt: skip
            assert found["release"]["expires"].startswith("21")
            edge, nvlink = found["pools"]
            assert (edge["pool"], edge["answers"], nvlink["answers"]) == ("edge", 2, 1)
            assert 0 < edge["p50_ms"] <= edge["p95_ms"]
            (pi,) = edge["endpoints"]
            assert pi | {"round_trip_ms": 0, "cpu": None} == {
                "name": "pi", "usable": True, "drained": False, "heard": True, "state": "ready", "circuit": "closed", "variant": TINY, "release": 1,
                "round_trip_ms": 0, "slots": 4, "busy": 0, "queued": 0, "in_flight": 0, "cpu": None,
                "temperature_c": None, "throttled": [], "problem": None,
            }  # fmt: skip
            assert found["reasons"][0] == {"pool": "edge", "reason": "tiny_edge", "count": 2}
            assert [d["reason"] for d in found["decisions"]] == ["no_variant", "hint", "tiny_edge", "tiny_edge"]
            burns = {b["objective"]: b["burn_5m"] for b in found["objectives"]}
            assert burns["edge_p50"] == 0
            assert burns["availability"] > 100

    asyncio.run(scenario())


def test_a_dead_endpoint_shows(tmp_path: Path) -> None:
    """Its circuit opens, it is not usable, its requests are told as degraded."""

    async def scenario() -> None:
        async with running(tmp_path, edge={"pi": says("hello")}, nvlink={"gpu": closes}) as at:
            for _ in range(3):
                await at.ask(chat(model="large"))
            found = await told(at)
            (gpu,) = found["pools"][1]["endpoints"]
            assert (gpu["circuit"], gpu["usable"]) == ("open", False)
            assert found["decisions"][0]["degraded"] is True
            assert found["reasons"][0] == {"pool": "edge", "reason": "degraded", "count": 3}

    asyncio.run(scenario())


def test_browsers_get_a_page_under_a_strict_policy(tmp_path: Path) -> None:
    """HTML where it is asked for; no inline handler, nothing from elsewhere, nothing kept by caches."""

    async def scenario() -> None:
        async with running(tmp_path, edge={"pi": says("hello")}) as at:
            accept = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
            reply = await at.ask(b"", "/status", accept, method="GET")
            assert reply.headers["content-type"] == "text/html; charset=utf-8"
            assert reply.headers["vary"] == "accept"
            assert reply.headers["cache-control"] == "no-store"
            policy = reply.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'sha256-")
            assert "unsafe" not in policy
            page = reply.body.decode()
            assert "http" not in page
            assert " on" not in " ".join(
                part.split(">")[0] for part in page.split("<body>")[1].split("<")[1:] if part[:1].isalpha()
            )

    asyncio.run(scenario())


def test_nothing_secret_is_told(tmp_path: Path) -> None:
    """No prompt, answer, key or client's name is in the status, whoever asks."""
    keys = tmp_path / "keys.yaml"
    key = add_key(keys, "night-shift", priority=Priority.INTERACTIVE, rate=None)

    async def scenario() -> None:
        async with running(tmp_path / "site", edge={"pi": says("the answer")}, keys=keys) as at:
            headers = {"authorization": f"Bearer {key}"}
            await at.ask(chat("the prompt", session="the session"), headers=headers)
            text = json.dumps(await told(at))
            (entry,) = yaml.safe_load(keys.read_text())["keys"]
            for secret in ("the prompt", "the answer", "the session", key, entry["sha256"], "night-shift", "127.0.0.1"):
                assert secret not in text
            assert '"reason": "tiny_edge"' in text

    asyncio.run(scenario())
