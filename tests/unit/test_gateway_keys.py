"""API keys: who may ask, how often, in which class; and the command that makes them."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import cli
from pipeline.errors import CatalogError
from pipeline.serving.decision import Priority
from pipeline.serving.gateway.callers import Callers, add_key
from pipeline.serving.gateway.problems import Problem
from tests.support.gateways import Running, chat, running
from tests.support.upstreams import says


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def _bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_a_key_is_kept_as_its_hash_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the key once; the file is its owner's and does not hold it."""
    assert cli.main(["gateway-key", "floor", "--keys", str(file), "--priority", "batch", "--rate", "60"]) == 0
    key = capsys.readouterr().out.strip()
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    callers = Callers(file, Clock())
    callers.reload()
    found = callers.admit(_bearer(key))
    assert found is not None
    assert (found.name, found.priority, found.requests_per_minute) == ("floor", Priority.BATCH, 60)
    assert cli.main(["gateway-key", "floor", "--keys", str(file)]) == 2


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({b"authorization": b"Bearer "}, id="empty"),
        pytest.param({b"authorization": b"Bearer edge-guess"}, id="unknown"),
        pytest.param({b"authorization": b"Basic eDp5"}, id="another scheme"),
        pytest.param({b"authorization": b"\xff\xfe"}, id="no text"),
    ],
)
def test_without_a_known_key_nobody_asks(file: Path, headers: dict[bytes, bytes]) -> None:
    """Whatever comes instead of a known key is a 401."""
    add_key(file, "a", priority=Priority.INTERACTIVE, rate=None)
    callers = Callers(file, Clock())
    callers.reload()
    with pytest.raises(Problem) as e:
        callers.admit(headers)
    assert e.value.status == 401


def test_a_rate_is_kept(file: Path) -> None:
    """After a burst of ten a key waits; each second fills one request at sixty a minute."""
    key, clock = add_key(file, "a", priority=Priority.INTERACTIVE, rate=60.0), Clock()
    callers = Callers(file, clock)
    callers.reload()
    for _ in range(10):
        callers.admit(_bearer(key))
    with pytest.raises(Problem) as e:
        callers.admit(_bearer(key))
    assert (e.value.status, e.value.retry_after_s) == (429, 1)
    clock.now += 1.0
    callers.admit(_bearer(key))


def test_a_changed_file_counts_and_a_broken_one_does_not(file: Path) -> None:
    """New keys are known after a reload, removed ones are not; a broken file leaves the last good one in place."""
    first = add_key(file, "a", priority=Priority.INTERACTIVE, rate=None)
    callers = Callers(file, Clock())
    callers.reload()
    second = add_key(file, "b", priority=Priority.INTERACTIVE, rate=None)
    callers.reload()
    callers.admit(_bearer(first))
    callers.admit(_bearer(second))
    file.write_text("keys: 5")
    with pytest.raises(CatalogError):
        callers.reload()
    callers.admit(_bearer(first))
    file.write_text(yaml.safe_dump({"keys": []}))
    callers.reload()
    with pytest.raises(Problem):
        callers.admit(_bearer(first))


def test_a_batch_key_asks_batch(tmp_path: Path, file: Path) -> None:
    """Whatever the request says, a batch key's requests are batch; without a key there is no answer and no model."""
    key = add_key(file, "nightly", priority=Priority.BATCH, rate=None)

    async def scenario(at: Running) -> None:
        headers = {"authorization": f"Bearer {key}"}
        reply = await at.ask(chat(priority="interactive"), headers=headers)
        assert reply.headers["x-edge-reason"] == "batch"
        assert at.lines[0]["caller"] == "nightly"
        assert "authorization" not in at.servers["gpu"].calls[0].headers
        for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET")):
            refused = await at.ask(chat(), path, method=method)
            assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")

    _play(tmp_path, scenario, keys=file)


def _play(root: Path, scenario: Any, **given: Any) -> None:
    async def run() -> None:
        async with running(root / "site", {"pi": says("a")}, {"gpu": says("b")}, **given) as found:
            await scenario(found)

    asyncio.run(run())
