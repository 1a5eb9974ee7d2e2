"""Count what a weight of each type costs each target's kernels, under its emulator.

    python -m pipeline.stages.kernel_costs pipeline/toolchain/instructions.json

Rules: two models of random weights that differ in the rows of their output matrix alone are decoded by the released
golden runner; counts repeat (on x86_64 but for some copies, see ports/qemu.py), so their difference is what those rows
cost. Needs qemu-user and the built runtimes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.catalog.names import Target
from pipeline.catalog.params import Check
from pipeline.catalog.recipe import TENSOR_TYPES, Recipe
from pipeline.errors import ToolError
from pipeline.ports import files, llama, qemu
from pipeline.stages import gguf_run
from pipeline.stages.gguf_run import Asked, Launcher
from pipeline.stages.golden import Request, Requests
from pipeline.toolchain import counting, runtime, source
from pipeline.toolchain.kernels import Counted, Counts

WIDTH, ROWS = 512, (1024, 2048)


def count(targets: Iterable[Target] = Target, kinds: Iterable[str] = TENSOR_TYPES) -> Counts:
    """Return the counts of some types on some targets.

    Raises:
        ToolError: an emulator is missing, or a model does not decode.
    """
    found = Counts(llama_commit=source.LLAMA_COMMIT)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for rows in ROWS:
            _model(folder / f"{rows}.gguf", rows)
        importance = {"output.weight": np.ones(WIDTH, np.float32)}
        for kind in kinds:
            for rows in ROWS:
                recipe = Recipe(base="Q8_0", tensors=[rf"^output\.weight$={kind}"])
                llama.quantize(folder / f"{rows}.gguf", folder / f"{kind}-{rows}.gguf", recipe, importance, 1)
        for target in targets:
            emulator = qemu.find(target)
            if emulator is None:
                raise ToolError(f"{qemu.PROGRAMS[target]} is not installed", hint=qemu.HINT)
            with ThreadPoolExecutor() as pool:
                costs = dict(zip(kinds, pool.map(partial(_cost, folder, emulator), kinds), strict=True))
            found.targets[target] = Counted(emulator=emulator.name, cpu=emulator.cpu, per_weight=costs)
    return found


def _cost(folder: Path, emulator: qemu.Emulator, kind: str) -> float:
    less, more = (_instructions(folder, emulator, f"{kind}-{rows}") for rows in ROWS)
    return round((more - less) / ((ROWS[1] - ROWS[0]) * WIDTH), 4)


def _instructions(folder: Path, emulator: qemu.Emulator, model: str) -> float:
    """Instructions of the token decoded after the prompt's."""
    out = folder / f"{model}.{emulator.target}"
    out.mkdir()
    asked = out / "requests.json"
    request = Request(id="x", prompt=[5, 9, 7], forced=[], prompt_length=3, max_tokens=2)
    asked.write_bytes(Requests(requests=[request]).encode())
    before = emulator.argv(counting.plugin(emulator.version), {counting.OUT_VARIABLE: "out/counts"})
    program = runtime.find(emulator.target).program(runtime.RUNNER)
    settings = Check(context=64, threads=1)
    gguf_run.launch(Launcher(program, before), folder / f"{model}.gguf", Asked(asked), out, settings=settings)
    counted = [int(line) for line in (out / "counts").read_text().split()]
    if len(counted) < 2:
        raise ToolError(f"{model} ended its answer at once", hint="choose another seed in kernel_costs")
    return counted[1]


def _model(path: Path, vocabulary: int) -> None:
    """Write a llama of one layer with random weights."""
    import gguf

    random = np.random.default_rng(0)
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(64)
    out.add_embedding_length(WIDTH)
    out.add_block_count(1)
    out.add_feed_forward_length(WIDTH)
    out.add_head_count(8)
    out.add_head_count_kv(8)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // 8)
    out.add_tokenizer_model("llama")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    out.add_token_list([*special, *(f"t{n}" for n in range(len(special), vocabulary))])
    out.add_token_scores([0.0] * vocabulary)
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256]
    out.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (vocabulary - len(kinds))])
    square = [
        f"blk.0.{n}.weight" for n in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    ]
    for name in ("token_embd.weight", "output.weight"):
        out.add_tensor(name, random.standard_normal((vocabulary, WIDTH), np.float32))
    for name in square:
        out.add_tensor(name, random.standard_normal((WIDTH, WIDTH), np.float32) / WIDTH**0.5)
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
        out.add_tensor(name, np.ones(WIDTH, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    files.write(Path(sys.argv[1]), count().encode() + b"\n")
