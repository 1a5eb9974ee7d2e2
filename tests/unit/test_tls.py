"""Mutual TLS by real handshakes: whom a server takes, whom a client believes, and how certificates change in place."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from pipeline.errors import CatalogError, ToolError
from pipeline.peers import tls
from pipeline.peers.role import Role
from pipeline.serving import certs
from tests.support import pki
from tests.support.releases import open_files

Loop = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Loop:
    found: Loop = request.param
    return found


@pytest.fixture(scope="module")
def authority() -> certs.Pair:
    return pki.authority()


@pytest.fixture
def server(authority: certs.Pair, tmp_path: Path) -> Path:
    return pki.folder(tmp_path / "server", authority, Role.NODE)


@pytest.fixture
def client(authority: certs.Pair, tmp_path: Path) -> Path:
    return pki.folder(tmp_path / "client", authority, Role.GATEWAY)


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A server that answers each line with the same line."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def talk(port: int, context: ssl.SSLContext, host: str = "localhost") -> str:
    """Send a line and return who the server said it is: its certificate's serial number."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
    try:
        serial: str = writer.get_extra_info("peercert")["serialNumber"]
        await echo(reader, writer)
        return serial
    finally:
        writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello\n")
    await writer.drain()
    if await reader.readline() != b"hello\n":
        raise ConnectionResetError("the server hung up")


async def refused(port: int, context: ssl.SSLContext, host: str = "localhost") -> str:
    with pytest.raises((ssl.SSLError, ConnectionError)) as caught:
        await talk(port, context, host)
    return str(caught.value)


def test_both_sides_know_each_other(run: Loop, server: Path, client: Path) -> None:
    """With certificates of one authority and the right roles a connection is TLS 1.3 and carries data."""

    async def go() -> None:
        async with serving(tls.server_context(server, [Role.GATEWAY])) as port:
            context = tls.client_context(client, [Role.NODE])
            await talk(port, context)
            context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            await refused(port, context)

    run(go())


def test_a_server_takes_nobody_else(run: Loop, server: Path, authority: certs.Pair, tmp_path: Path) -> None:
    """Another authority, no certificate, another role, no role and an expired certificate get no answer."""
    other = pki.folder(tmp_path / "other", pki.authority(), Role.GATEWAY)
    (other / tls.CA_FILE).write_bytes(authority.pem)
    others = {
        "other authority": other,
        "other role": pki.folder(tmp_path / "role", authority, Role.CLIENT),
        "no role": pki.folder(tmp_path / "none", authority),
        "expired": pki.folder(tmp_path / "old", authority, Role.GATEWAY, age=timedelta(days=certs.DAYS + 1)),
        "not yet": pki.folder(tmp_path / "young", authority, Role.GATEWAY, age=timedelta(days=-1)),
    }
    anonymous = ssl.create_default_context(cadata=authority.pem.decode())

    async def go() -> None:
        async with serving(tls.server_context(server, [Role.GATEWAY, Role.CONTROLLER])) as port:
            await refused(port, anonymous)
            for folder in others.values():
                await refused(port, tls.client_context(folder, [Role.NODE]))

    run(go())


def test_a_client_believes_nobody_else(run: Loop, client: Path, authority: certs.Pair, tmp_path: Path) -> None:
    """A client tells a server's other role, name, authority or age, and sends nothing."""
    gateway = tls.client_context(client, [Role.NODE])
    cases = [
        (pki.folder(tmp_path / "role", authority, Role.CLIENT), "none of the roles node"),
        (pki.folder(tmp_path / "name", authority, Role.NODE, hosts=["elsewhere"]), "Hostname mismatch"),
        (pki.folder(tmp_path / "alien", pki.authority(), Role.NODE), "verify failed"),
        (pki.folder(tmp_path / "old", authority, Role.NODE, age=timedelta(days=99)), "expired"),
    ]

    async def go() -> None:
        for folder, reason in cases:
            async with serving(tls.server_context(folder, list(Role))) as port:
                assert reason in await refused(port, gateway)

    run(go())


def test_blocking_sockets_and_aiohttp_check_roles_too(server: Path, client: Path) -> None:
    """The role is checked whoever drives the handshake."""

    async def go() -> None:
        async with serving(tls.server_context(server, [Role.GATEWAY])) as port:
            wrong, right = (tls.client_context(client, [role]) for role in (Role.LARGE, Role.NODE))
            await asyncio.to_thread(_blocking, port, right)
            with pytest.raises(ssl.SSLCertVerificationError, match="none of the roles large"):
                await asyncio.to_thread(_blocking, port, wrong)
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.ClientConnectorCertificateError, match="none of the roles large"):
                    await session.get(f"https://localhost:{port}/", ssl=wrong)

    asyncio.run(go())


def _blocking(port: int, context: ssl.SSLContext) -> None:
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"hello\n")
        assert connection.recv(6) == b"hello\n"


def test_certificates_change_while_connections_live(
    run: Loop, server: Path, client: Path, authority: certs.Pair
) -> None:
    """After new files a connection goes on, the next one gets the new certificate, on both sides."""

    async def go() -> None:
        context, gateway = tls.server_context(server, [Role.GATEWAY]), tls.client_context(client, [Role.NODE])
        reloader = tls.Reloader(server, [context])
        async with serving(context) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=gateway, server_hostname="localhost")
            await echo(reader, writer)
            before = await talk(port, gateway)
            pki.folder(server, authority, Role.NODE)
            assert reloader.check() is None  # they may still be changing
            assert reloader.check() == "new certificate loaded"
            assert reloader.check() is None
            assert await talk(port, gateway) != before
            await echo(reader, writer)
            writer.close()

    run(go())


def test_the_public_shows_no_certificate(run: Loop, server: Path, authority: certs.Pair) -> None:
    """A public server asks nobody for one, speaks TLS 1.2 too, needs no `ca.pem`, and renews like the others."""
    (server / tls.CA_FILE).unlink()

    async def go() -> None:
        context = tls.public_context(server)
        reloader = tls.Reloader(server, [context])
        anyone = ssl.create_default_context(cadata=authority.pem.decode())
        async with serving(context) as port:
            before = await talk(port, anyone)
            anyone.maximum_version = ssl.TLSVersion.TLSv1_2
            assert await talk(port, anyone) == before
            pki.folder(server, authority, Role.NODE)
            (server / tls.CA_FILE).unlink()
            reloader.check()
            assert reloader.check() == "new certificate loaded"
            assert await talk(port, anyone) != before
            (server / tls.KEY_FILE).write_bytes(authority.key_pem)
            reloader.check()
            assert "is not the key of" in str(reloader.check())
            await refused(port, ssl.create_default_context(cadata=pki.authority().pem.decode()))

    run(go())


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        pytest.param(tls.CERT_FILE, b"garbage", "not PEM", id="garbage"),
        pytest.param(tls.KEY_FILE, certs.new_authority.__doc__.encode(), "not PEM", id="no key"),
        pytest.param(tls.KEY_FILE, None, "is not the key of", id="another's key"),
        pytest.param(tls.CA_FILE, None, "not from the authority", id="another authority"),
    ],
)
def test_a_broken_change_leaves_the_old_and_is_told_of_once(
    server: Path, client: Path, authority: certs.Pair, tmp_path: Path, name: str, data: bytes | None, reason: str
) -> None:
    """Files that do not belong together change nothing; when they are mended, they are loaded."""
    other = pki.folder(tmp_path / "other", pki.authority(), Role.NODE)

    async def go() -> None:
        context, gateway = tls.server_context(server, [Role.GATEWAY]), tls.client_context(client, [Role.NODE])
        reloader = tls.Reloader(server, [context])
        async with serving(context) as port:
            before = await talk(port, gateway)
            (server / name).write_bytes((other / name).read_bytes() if data is None else data)
            told = [reloader.check() for _ in range(4)]
            assert [line for line in told if line] == [told[1]]
            assert reason in str(told[1])
            assert await talk(port, gateway) == before
            pki.folder(server, authority, Role.NODE)
            reloader.check()
            assert reloader.check() == "new certificate loaded"
            assert await talk(port, gateway) != before

    asyncio.run(go())


def test_an_expired_or_missing_file_is_no_change(server: Path, authority: certs.Pair) -> None:
    """A certificate that is past its time, and a folder without one, leave the old one in use."""
    reloader = tls.Reloader(server, [tls.server_context(server, [Role.GATEWAY])])
    pki.folder(server, authority, Role.NODE, age=timedelta(days=99))
    reloader.check()
    assert "not valid now" in str(reloader.check())
    (server / tls.CERT_FILE).unlink()
    reloader.check()
    assert "No such file" in str(reloader.check())


def test_unusable_files_are_one_clear_error(server: Path, tmp_path: Path) -> None:
    """A server does not start without its files, or with those of two."""
    with pytest.raises(ToolError, match="No such file"):
        tls.server_context(tmp_path / "nowhere", [Role.GATEWAY])
    (server / tls.KEY_FILE).write_bytes(pki.authority().key_pem)
    with pytest.raises(ToolError, match="cannot be used"):
        tls.server_context(server, [Role.GATEWAY])


def test_reloading_from_many_threads_leaks_nothing(server: Path) -> None:
    """Loading again leaves no file open."""
    context = tls.server_context(server, [Role.GATEWAY])
    count = open_files()
    threads = [threading.Thread(target=tls.server_context, args=(server, [Role.GATEWAY])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert context.allowed == {Role.GATEWAY}
    assert open_files() == count


@pytest.mark.parametrize("host", ["http://x", "a b", "host:443", "", "-x"])
def test_a_host_that_is_none_is_refused(authority: certs.Pair, tmp_path: Path, host: str) -> None:
    """What cannot stand in a certificate is told before one is made."""
    with pytest.raises(CatalogError, match="is no host"):
        pki.folder(tmp_path, authority, Role.NODE, hosts=[host])
