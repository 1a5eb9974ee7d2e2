"""Ranks as forks of the test process, which has torch imported already; torchrun's own start takes much longer."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def on_ranks(degree: int, call: Callable[[int], Any]) -> list[Any]:
    """Return what `call(rank)` returns on each of `degree` ranks; raises EOFError where a rank dies."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ends, ranks = [], []
    for rank in range(degree):
        mine, theirs = context.Pipe(duplex=False)
        ranks.append(context.Process(target=_be, args=(rank, degree, port, call, theirs)))
        ranks[-1].start()
        theirs.close()
        ends.append(mine)
    try:
        return [end.recv() for end in ends]
    finally:
        for rank, end in zip(ranks, ends, strict=True):
            rank.join()
            end.close()


def _be(rank: int, degree: int, port: int, call: Callable[[int], Any], end: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": degree, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    end.send(call(rank))
    end.close()
