"""A whole model out of its shards: what tensor parallelism split is put together again.

Rules: weights are streamed rank by rank; values are those of the shards, to the bit; a folder that is there was whole
when it was put there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError
from pipeline.model import hf
from pipeline.model.layout import Layout, rank_file
from pipeline.model.tensor_file import Spec, TensorFile, order
from pipeline.ports import files

if TYPE_CHECKING:
    from torch import Tensor


def join(shards: Path, target: Path) -> Path:
    """Write the model whose shards lie in a folder as one Hugging Face folder, and return it; nothing where it is.

    Raises:
        StageError: the shards are not whole, or the disk is full.
    """
    if target.exists():
        return target
    layout = Layout.read(shards)
    specs = {name: layout.whole(name) for name in layout.shapes}
    try:
        with files.new_folder(target) as folder:
            _write(shards, folder, layout, specs)
            hf.copy_tokenizer(shards, folder)
            shutil.copyfile(shards / hf.CONFIG, folder / hf.CONFIG)
    except OSError as e:
        raise StageError(f"cannot join {shards}: {e.strerror}", hint="free space, or pull the variant again") from e
    return target


def _write(shards: Path, folder: Path, layout: Layout, specs: dict[str, Spec]) -> None:
    from safetensors import safe_open

    with ExitStack() as stack:
        ranks = [
            stack.enter_context(safe_open(shards / rank_file(rank, layout.degree), framework="pt"))
            for rank in range(layout.degree)
        ]
        out = stack.enter_context(TensorFile(folder / "model.safetensors", specs))
        for name in order(specs):
            out.write(_pieces(ranks, name, layout.splits[name]))


def _pieces(ranks: list[Any], name: str, split: int | None) -> Iterator[Tensor]:
    """A tensor's rows in order: a rank's after the other's, or side by side where columns were split."""
    import torch

    if split is None:
        yield ranks[0].get_tensor(name)
    elif split == 0:
        yield from (rank.get_tensor(name) for rank in ranks)
    else:
        yield torch.cat([rank.get_tensor(name) for rank in ranks], dim=1)
