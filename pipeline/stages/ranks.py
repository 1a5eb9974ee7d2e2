"""The processes that share a training's batches: one, or as many as torchrun started.

Rules: rank 0 alone writes; sums come out with the same bits on every rank, and ranks that drift apart are an error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import StageError


@dataclass(frozen=True)
class Ranks:
    """This process among `count`, and the device it computes on."""

    rank: int
    count: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.rank == 0

    @property
    def mine(self) -> slice:
        """The rows of a batch that are this rank's."""
        return slice(self.rank, None, self.count)

    def add_up(self, values: Tensor) -> None:
        """Replace values by their sum over all ranks."""
        if self.count > 1:
            dist.all_reduce(values)

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.count > 1:
            dist.barrier()

    def agree(self, model: Any) -> str:
        """Return the digest of a model's weights; raises StageError where ranks have different ones."""
        digest = weights_digest(model)
        found: list[Any] = [digest]
        if self.count > 1:
            found = [None] * self.count
            dist.all_gather_object(found, digest)
        if len(set(found)) > 1:
            raise StageError("the ranks' weights differ", hint="start ranks on machines of one kind")
        return digest


def weights_digest(model: Any) -> str:
    """Return the hex SHA-256 over names and values of a model's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def joined(env: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, or be the only one; leave them when the block ends."""
    rank, count, local = (int(env.get(name, default)) for name, default in _PLACE)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if count == 1:
        yield Ranks(0, 1, device)
        return
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield Ranks(rank, count, device)
    finally:
        dist.destroy_process_group()


_PLACE = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
