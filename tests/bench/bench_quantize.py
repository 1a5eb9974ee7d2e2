"""Our quantization beside llama-quantize: CPU seconds and peak memory on the same model, in pairs of runs.

    python tests/bench/bench_quantize.py [--runs N] [--base PRESET] [--layers N]

Each run is a process of its own, ours with Python's start included; runs alternate, so that what else the machine does
meets both. Ends with 1 where the medians miss a target: CPU time at most 1.05 of llama-quantize's, memory no higher.
"""

from __future__ import annotations

import argparse
import filecmp
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from pipeline.toolchain import runtime

HIDDEN, FFN, HEADS, KV_HEADS, VOCABULARY = 1024, 2816, 16, 8, 32000
CPU_RATIO_MAX = 1.05
OURS = """
import sys
from pathlib import Path
from pipeline.catalog.recipe import Recipe
from pipeline.ports import llama
llama.quantize(Path(sys.argv[1]), Path(sys.argv[2]), Recipe(base=sys.argv[3], imatrix=False), None, int(sys.argv[4]))
"""


@dataclass(frozen=True)
class Run:
    """What one process used: CPU seconds and peak resident bytes."""

    cpu: float
    peak: int


def write_model(path: Path, layers: int) -> None:
    """Write a Llama of random bf16 matrices."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    kv = HIDDEN // HEADS * KV_HEADS
    matrices = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN)}
    matrices |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN)}
    matrices |= {"ffn_down": (HIDDEN, FFN)}
    shapes = {"token_embd.weight": (VOCABULARY, HIDDEN), "output.weight": (VOCABULARY, HIDDEN)}
    shapes |= {f"blk.{i}.{name}.weight": shape for i in range(layers) for name, shape in matrices.items()}
    norms = ["output_norm.weight", *(f"blk.{i}.{n}_norm.weight" for i in range(layers) for n in ("attn", "ffn"))]
    rng = np.random.default_rng(0)
    for name in norms:
        writer.add_tensor(name, np.ones(HIDDEN, np.float32))
    for name, shape in shapes.items():
        values = rng.normal(0, 0.02, shape).astype(np.float32)
        half = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        writer.add_tensor(name, half, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(command: list[str]) -> Run:
    """Run a program and return what the kernel counted for it."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} ended with status {process.returncode}: {said[-500:].decode(errors='replace')}")
    return Run(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--base", default="Q4_K_M")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, ours, theirs = (Path(scratch) / name for name in ("model.gguf", "ours.gguf", "theirs.gguf"))
        # In a process of its own: the kernel lets children begin with the peak of the process that starts them.
        writer = multiprocessing.get_context("spawn").Process(target=write_model, args=(model, args.layers))
        writer.start()
        writer.join()
        print(f"model: {model.stat().st_size >> 20} MiB bf16, {args.base}, {args.threads} thread(s)")
        threads = str(args.threads)
        commands = {
            "edge-release": [sys.executable, "-c", OURS, str(model), str(ours), args.base, threads],
            "llama-quantize": [
                str(runtime.find(runtime.native()).program(runtime.QUANTIZE)),
                str(model),
                str(theirs),
                args.base,
                threads,
            ],
        }
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(args.runs):
            for name, command in commands.items():
                runs[name].append(measure(command))
        same = filecmp.cmp(ours, theirs, shallow=False)
    for name, found in runs.items():
        cpu, peak = statistics.median(r.cpu for r in found), statistics.median(r.peak for r in found)
        spread = f"{min(r.cpu for r in found):.2f}..{max(r.cpu for r in found):.2f}"
        print(f"{name:15} CPU {cpu:7.2f} s ({spread})   peak {peak / 2**20:7.1f} MiB")
    mine, other = runs.values()
    pairs = zip(mine, other, strict=True)
    ratio = statistics.median(r.cpu for r in mine) / statistics.median(r.cpu for r in other)
    peak_ratio = statistics.median(r.peak for r in mine) / statistics.median(r.peak for r in other)
    paired = statistics.median(a.cpu / b.cpu for a, b in pairs)
    print(f"ratio: CPU {ratio:.3f} (median of pairs {paired:.3f}), peak {peak_ratio:.3f}, bytes equal: {same}")
    return 0 if same and ratio <= CPU_RATIO_MAX and peak_ratio <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
