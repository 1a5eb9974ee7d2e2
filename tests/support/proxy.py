"""A TCP proxy that cuts connections."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Proxy:
    """Passes connections on to a server until they have together moved `budget` bytes in one direction.

    Args:
        target: host and port of the server.
        budget: bytes after which the connection that moved the last of them is cut.
        up: count what goes to the server, else what comes from it.
        stays: cut that one connection and go on serving others; else the proxy is gone afterwards.
    """

    def __init__(self, target: tuple[str, int], budget: int, *, up: bool, stays: bool = False) -> None:
        self._target = target
        self._budget = budget
        self._up = up
        self._stays = stays
        self._lock = threading.Lock()
        self._moved = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.cut = False
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(self._listener)
        self._close(*self._sockets)
        for thread in self._threads:
            thread.join()

    def _start(self, run: object, *args: object) -> None:
        thread = threading.Thread(target=run, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                with self._lock:
                    self._sockets += [client, server]
                    gone = self.cut and not self._stays
                if gone:  # it was on its way in while the others were cut
                    self._close(client, server)
                    return
                self._start(self._pump, client, server, self._up)
                self._start(self._pump, server, client, not self._up)

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
                if counted and self._count(len(data)):
                    self._cut(source, target)
        self._close(source, target)

    def _count(self, moved: int) -> bool:
        with self._lock:
            before, self._moved = self._moved, self._moved + moved
            return before <= self._budget < self._moved

    def _cut(self, *pair: socket.socket) -> None:
        with self._lock:
            self.cut, known = True, list(self._sockets)
        if not self._stays:
            self._close(self._listener, *known)
        self._close(*pair)

    def _close(self, *sockets: socket.socket) -> None:
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
