"""Servers of a pool on real sockets that do what they are told: answer, stream, and fail in every way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.peers.status import Pool, Served, ServerStatus, State

Behaviour = Callable[["Call"], Awaitable[None]]


@dataclass
class Call:
    """One request a server got, and the way back."""

    path: str
    headers: dict[str, str]
    document: dict[str, Any]
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader

    async def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        await self.raw(head.encode() + body)

    async def begin(self) -> None:
        await self.raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


def completion(text: str, model: str = "m") -> bytes:
    """Return a chat completion as llama-server makes it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return json.dumps(
        {"id": "c", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}
    ).encode()


def piece(text: str | None, finish: str | None = None, answer: str = "c") -> bytes:
    """Return an event with a piece of a chat's answer."""
    delta = {"role": "assistant", "content": None} if text is None else {"content": text}
    choice = {"index": 0, "delta": {} if finish else delta, "finish_reason": finish}
    chunk = {"id": answer, "created": 1, "model": "m", "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def says(text: str) -> Behaviour:
    """Answer whole, or streamed by letters, whichever is asked for; go on after what the last turn says already."""

    async def behave(call: Call) -> None:
        if not call.document.get("stream"):
            await call.reply(200, completion(text, call.document["model"]))
            return
        await call.begin()
        for event in streamed(call.document, text):
            await call.chunk(event)
        await call.chunk(DONE)
        await call.raw(b"0\r\n\r\n")

    return behave


def streamed(document: dict[str, Any], text: str) -> list[bytes]:
    """Return the events of an answer, from where the last turn ends."""
    last = document["messages"][-1] if "messages" in document else {"role": "user"}
    rest = text.removeprefix(last["content"]) if last["role"] == "assistant" else text
    return [
        piece(None, answer="other"),
        *(piece(letter, answer="other") for letter in rest),
        piece("", "stop", "other"),
    ]


def breaks_after(events: Sequence[bytes], how: str = "close") -> Behaviour:
    """Stream some events, then close the connection, cut a chunk, hang, report an error, or end without [DONE]."""

    async def behave(call: Call) -> None:
        await call.begin()
        for event in events:
            await call.chunk(event)
        if how == "cut":
            await call.raw(b"fff\r\ndata: {")
        if how == "hang":
            await asyncio.sleep(3600)
        if how == "error":
            await call.chunk(b'data: {"error": {"message": "boom"}}\n\n')
        if how == "end":
            await call.raw(b"0\r\n\r\n")
        call.writer.close()

    return behave


async def hangs(call: Call) -> None:
    """Take the request and say nothing."""
    await asyncio.sleep(3600)


async def closes(call: Call) -> None:
    """Close the connection."""
    call.writer.close()


def replies(status: int, body: bytes, kind: str = "application/json") -> Behaviour:
    """Answer with any status and body."""

    async def behave(call: Call) -> None:
        await call.reply(status, body, kind)

    return behave


def raw(data: bytes) -> Behaviour:
    """Send any bytes and close."""

    async def behave(call: Call) -> None:
        await call.raw(data)
        call.writer.close()

    return behave


@dataclass
class Upstream:
    """One server; `left` is set when a client closes its connection while it is being answered."""

    pool: Pool
    variant: str
    digest: str
    behave: Behaviour = field(default_factory=lambda: says("hello"))
    status: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    frozen: bool = False
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close every connection and refuse new ones."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                await self._answer(line.split()[1].decode(), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        headers = {}
        while (line := await reader.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        call = Call(path, headers, json.loads(body or b"{}"), writer, reader)
        if self.frozen:
            await asyncio.sleep(3600)
        if path == "/status":
            await call.reply(200, self._status())
            return
        self.calls.append(call)
        work, gone = asyncio.ensure_future(self.behave(call)), asyncio.ensure_future(reader.read(1))
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            self.left.set()
            work.cancel()
            writer.close()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)

    def _status(self) -> bytes:
        served = Served(
            variant=self.variant,
            model_sha256=self.digest,
            release_line="demo",
            release_version=1,
            manifest_sha256="0" * 64,
        )
        usual = {"name": "n", "pool": self.pool, "state": State.READY, "served": served, "slots": 4, "context": 4096}
        return ServerStatus(**{**usual, **self.status}).encode()
