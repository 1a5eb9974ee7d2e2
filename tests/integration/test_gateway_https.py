"""The gateway's own port over HTTPS, asked by the stock `openai` client."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import aiohttp
import openai
import pytest

from tests.support import pki
from tests.support.gateway_process import PATIENCE_S, GatewayProcess, site
from tests.support.upstreams import DONE, Call, piece, says


def _client(at: GatewayProcess, context: ssl.SSLContext) -> openai.AsyncOpenAI:
    http = openai.DefaultAsyncHttpxClient(verify=context)
    url = f"https://localhost:{at.port}/v1"
    return openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http)


def _serial(at: GatewayProcess) -> object:
    with (
        socket.create_connection(("127.0.0.1", at.port)) as plain,
        at.public().wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        return (connection.getpeercert() or {})["serialNumber"]


def test_a_stream_outlives_its_certificate(tmp_path: Path) -> None:
    """A client needs the authority alone; in the middle of its answer the certificate changes, and nothing breaks."""
    going = asyncio.Event()

    async def slow(call: Call) -> None:
        await call.begin()
        await call.chunk(piece(None) + piece("first "))
        await going.wait()
        await call.chunk(piece("last") + piece("", "stop") + DONE)
        await call.raw(b"0\r\n\r\n")

    async def scenario() -> None:
        async with site(tmp_path, {"pi": slow}, {}) as at:
            await at.start("--https", str(at.own), context=at.public(), limits={"chunk_s": PATIENCE_S})
            async with _client(at, at.public()) as client:
                stream = await client.chat.completions.create(
                    model="auto", messages=[{"role": "user", "content": "hi"}], stream=True
                )
                text, before = "", await asyncio.to_thread(_serial, at)
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
                    if text == "first ":
                        at.renew()
                        async with asyncio.timeout(PATIENCE_S):
                            while await asyncio.to_thread(_serial, at) == before:
                                await asyncio.sleep(0.2)
                        going.set()
                assert text == "first last"
                assert f"{at.own}: new certificate loaded" in at.log

    asyncio.run(scenario())


def test_clients_that_do_not_believe_it_send_nothing(tmp_path: Path) -> None:
    """A client with another authority ends in the handshake, one without TLS gets no answer."""

    async def scenario() -> None:
        async with site(tmp_path, {"pi": says("hello")}, {}) as at:
            await at.start("--https", str(at.own), context=at.public())
            async with _client(at, at.public(pki.authority())) as client:
                with pytest.raises(openai.APIConnectionError):
                    await client.models.list()
            with pytest.raises(aiohttp.ClientError):
                await at.session.get(f"http://localhost:{at.port}/healthz")
            async with _client(at, at.public()) as client:
                assert (await client.models.list()).data[0].id == "auto"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        pytest.param(["--host", "0.0.0.0"], 2, "--https DIR", id="open"),
        pytest.param(["--admin", "127.0.0.1:1"], 2, "--tls DIR", id="admin without certificates"),
        pytest.param(["--admin", "8089"], 2, "is not HOST:PORT", id="no address"),
        pytest.param(["--https", "nowhere"], 4, "No such file", id="no certificate"),
    ],
)
def test_it_does_not_open_by_accident(tmp_path: Path, flags: list[str], status: int, said: str) -> None:
    """What would be open to others without certificates does not start, and says what is missing."""

    async def scenario() -> None:
        async with site(tmp_path, {"pi": says("hello")}, {}) as at:
            assert await asyncio.to_thread(at.launch(*flags).wait, PATIENCE_S) == status
            assert said in at.log

    asyncio.run(scenario())


def test_a_taken_port_is_told_of(tmp_path: Path) -> None:
    """Another program on the port ends the gateway with a line and status 4."""

    async def scenario() -> None:
        async with site(tmp_path, {"pi": says("hello")}, {}) as at:
            with socket.create_server(("127.0.0.1", at.port)):
                assert await asyncio.to_thread(at.launch().wait, PATIENCE_S) == 4
            assert f"cannot listen on 127.0.0.1:{at.port}" in at.log

    asyncio.run(scenario())


def test_an_open_port_is_what_insecure_means(tmp_path: Path) -> None:
    """With --insecure, others may call without TLS."""

    async def scenario() -> None:
        async with site(tmp_path, {"pi": says("hello")}, {}) as at:
            await at.start("--host", "0.0.0.0", "--insecure")
            assert await at.went() == ("pi", "tiny_edge")

    asyncio.run(scenario())
