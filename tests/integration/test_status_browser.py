"""The status page in a real browser: it stands alone, fits its window, follows the colour scheme, and stays current."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from pipeline.peers.status import State
from tests.support import chromium
from tests.support.chromium import Browser, Page
from tests.support.gateways import LARGE, Running, chat, running
from tests.support.llama_server import free_port
from tests.support.upstreams import closes, says

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not chromium.PROGRAM.exists(), reason=f"there is no {chromium.PROGRAM}; {chromium.ENABLE}"),
]

# Where pictures are kept for people to look at; else they vanish with the test.
PICTURES = os.environ.get("EDGE_RELEASE_SCREENSHOTS")
HOSTILE = "</td><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
POOLS: dict[str, Any] = {
    "edge": {"pi-1": says("hello"), "pi-2": says("hello")},
    "nvlink": {"gpu-1": closes},
    "status": {
        "pi-1": {"cpu": 0.31, "temperature_c": 61.5, "busy": 1},
        "pi-2": {"cpu": 0.93, "queued": 2, "busy": 4, "throttled": ["under-voltage"], "reason": HOSTILE},
    },
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests, with a profile that was never used."""
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as running_browser:
        yield running_browser


@asynccontextmanager
async def listening(at: Running) -> AsyncIterator[tuple[str, uvicorn.Server]]:
    """Yield the address of the status page of a gateway that is served on a socket."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(at.app, port=port, lifespan="off", ws="none", log_level="error"))
    serving = asyncio.create_task(server.serve())
    try:
        await at.until(lambda: server.started)
        yield f"http://127.0.0.1:{port}/status", server
    finally:
        server.should_exit = True
        await serving


def play(root: Path, scenario: Callable[[Running, str, uvicorn.Server], Awaitable[None]]) -> None:
    """Run a scenario with a gateway that answered, degraded and refused requests."""

    async def run() -> None:
        async with running(root, **POOLS) as at, listening(at) as (address, server):
            for n in range(8):
                await at.ask(chat(f"where is the tea {n}?", stream=n % 2 == 0))
            await at.ask(chat(model="large"))
            await at.ask(chat(model=LARGE, sensitive=True))
            await scenario(at, address, server)

    asyncio.run(run())


def until(tab: Page, script: str) -> None:
    """Wait until a script of the test's own gives true."""
    assert tab.run(f"""new Promise((done, late) => {{
        setTimeout(() => late(new Error("it does not come")), 20000);
        const look = () => ({script}) ? done(true) : setTimeout(look, 50); look();
    }})"""), script


def opened(browser: Browser, address: str, width: int = 1280, scheme: str = "light") -> Page:
    tab = browser.page(online=True)
    tab.window(width, 900, scheme)
    tab.open(address)
    until(tab, "document.querySelector('#state').textContent === 'ready'")
    return tab


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_shows_all_and_can_be_read(browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    """No complaint, no request but to itself, nothing wider than the window, every text readable, every table full."""

    def look(address: str) -> None:
        tab = opened(browser, address, width, scheme)
        assert tab.run("document.title") == "Gateway: ready"
        assert tab.run("document.documentElement.scrollWidth") == width
        contrasts = tab.run(chromium.CONTRAST)
        assert len(contrasts) > 3
        assert {colour: value for colour, value in contrasts.items() if value < 4.5} == {}
        counts = tab.run("[...document.querySelectorAll('tbody')].map(body => body.rows.length)")
        assert counts == [4, 2, 3, 3, 10]
        assert tab.run("document.querySelector('#objectives').textContent").count("begin within") == 3
        tab.wait()
        assert tab.complaints == []
        assert set(tab.requests) == {address}
        folder = Path(PICTURES) if PICTURES else tmp_path
        assert tab.picture(folder / f"status-{width}-{scheme}.png").startswith(b"\x89PNG")

    async def scenario(_: Running, address: str, __: uvicorn.Server) -> None:
        await asyncio.to_thread(look, address)

    play(tmp_path, scenario)


def test_it_stays_current_and_says_when_it_cannot(browser: Browser, tmp_path: Path) -> None:
    """A request shows within the next looks, an endpoint that leaves too; a gateway that is gone is not passed over."""

    async def scenario(at: Running, address: str, server: uvicorn.Server) -> None:
        tab = await asyncio.to_thread(opened, browser, address)
        await at.ask(chat(sensitive=True))
        await asyncio.to_thread(until, tab, "document.querySelector('#decisions').textContent.includes('sensitive')")
        at.servers["pi-1"].status = {"state": State.DRAINING}
        await asyncio.to_thread(until, tab, "document.querySelector('#endpoints').textContent.includes('draining')")
        await asyncio.to_thread(until, tab, "document.querySelector('#pools').textContent.includes('1 of 2')")
        server.should_exit = True
        await asyncio.to_thread(until, tab, "document.querySelector('#state').textContent.startsWith('no answer')")

    play(tmp_path, scenario)


def test_hostile_words_run_nothing(browser: Browser, tmp_path: Path) -> None:
    """What a server says of itself is text: it neither loads nor runs anything, and the policy was not needed for it."""

    def look(address: str) -> None:
        tab = opened(browser, address)
        until(tab, "document.querySelector('#endpoints').textContent.includes('onerror')")
        tab.wait()
        assert tab.run("document.title") == "Gateway: ready"
        assert tab.run("document.querySelectorAll('img, td script').length") == 0
        assert tab.complaints == []
        tab.run("document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:9/x.png'}))")
        tab.wait()
        assert [c for c in tab.complaints if "Content Security Policy" in c] != []

    async def scenario(_: Running, address: str, __: uvicorn.Server) -> None:
        await asyncio.to_thread(look, address)

    play(tmp_path, scenario)


def test_a_reader_of_the_screen_is_told_what_is_shown(browser: Browser, tmp_path: Path) -> None:
    """In the accessibility tree every section and scroll region has a name, and the standing is announced."""

    def look(address: str) -> None:
        tab = opened(browser, address)
        named: dict[str, list[str]] = {}
        for node in tab.call("Accessibility.getFullAXTree")["nodes"]:
            if not node["ignored"]:
                named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
        assert [len(named[role]) for role in ("table", "status", "main")] == [5, 1, 1]
        assert len(named["region"]) == 10
        assert all([*named["region"], *named["table"]])
        assert named["heading"][0] == "Gateway"
        assert len(named["rowheader"]) == 22

    async def scenario(_: Running, address: str, __: uvicorn.Server) -> None:
        await asyncio.to_thread(look, address)

    play(tmp_path, scenario)
