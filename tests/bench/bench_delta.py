"""What an update moves: chunks of tensors beside the whole file, `zstd --patch-from` and content-defined chunks.

    python -m tests.bench.bench_delta [--layers N] [--base PRESET] [--gguf FILE [--distilled FILE]]

Without --gguf the model is a Llama of random matrices (12 layers: 205 M parameters), quantized by llama.cpp; a second
distillation is stood in for by weights that moved by 1 % of their spread, and by weights that share nothing. With
--gguf it is an unquantized GGUF file of `build/gguf/`, and --distilled is one of another distillation.

Each pair of releases is published and pulled for real. Bytes moved are those a node fetches: ours with the chunk index,
chunks of 64 KB with an index of the same form. The patch is what `zstd` writes at its level 3 with the old file as a
dictionary; `zstd` alone is the new file compressed. CPU seconds and memory are a consumer's: of the whole `edge-release
pull` for ours, Python's start and all checks included, of decompression alone for zstd.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fastcdc import fastcdc

from pipeline.catalog.names import Channel
from pipeline.catalog.recipe import Recipe
from pipeline.cli.output import table
from pipeline.ports import llama, trust
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import publish
from tests.bench.bench_quantize import Run, write_model
from tests.support.releases import EDGE, LINE, NOW, Publisher

BLOCK = 64 << 10
ENTRY = 80  # bytes of an index for one chunk
# The kernel lets children begin with the peak of the process that starts them: this one is small.
SMALL = """
import os, sys
child = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(child, 0)
print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""
SAID = {"general.version": "2"}


@dataclass(frozen=True)
class Moved:
    """Bytes that a consumer fetches, and what it took to have the file: CPU seconds, peak resident bytes."""

    size: int
    took: Run | None = None


def ours(old: Path, new: Path, scratch: Path) -> Moved:
    """Publish both as releases, pull one after the other."""
    publisher, registry = Publisher(), scratch / "registry"
    trust.pin_own_key(scratch / "trust.yaml", LINE, publisher.pair.public_pem)
    command = [
        sys.executable, "-m", "pipeline.cli", "pull", EDGE, f"--into={scratch / 'into'}", f"--registry={registry}",
        f"--line={LINE}", f"--trust={scratch / 'trust.yaml'}", f"--state={scratch / 'state.json'}", "--json",
    ]  # fmt: skip
    for version, path in ((1, old), (2, new)):
        files = {f"{EDGE}/model.gguf": path.read_bytes()}
        release = publisher.release(scratch / str(version), version, files=files, valid_days=3650)
        publish(
            FolderStore(registry), release, channel=Channel.DEV, signer=publisher.sign, opener=publisher.opener, now=NOW
        )
        took, said = measure(command)
    done = json.loads(said)
    assert not done["fetched_whole"], done
    assert (scratch / "into/current/model.gguf").read_bytes() == new.read_bytes()
    return Moved(done["fetched_bytes"], took)


def zstd(new: Path, scratch: Path, *options: str) -> Moved:
    """Compress with zstd, and give the file back."""
    packed, again = scratch / "packed.zst", scratch / "again"
    measure(["zstd", "-q", "-f", "-3", "--long=31", *options, str(new), "-o", str(packed)])
    took, _ = measure(
        ["zstd", "-q", "-f", "-d", "--memory=2048MB", "--long=31", *options, str(packed), "-o", str(again)]
    )
    assert again.read_bytes() == new.read_bytes()
    return Moved(packed.stat().st_size, took)


def measure(command: list[str]) -> tuple[Run, bytes]:
    """Run a program; return what the kernel counted for it, and what it said."""
    done = subprocess.run([sys.executable, "-S", "-c", SMALL, *command], capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} ended with status {done.returncode}: {done.stderr[-500:].decode(errors='replace')}")
    cpu, peak = done.stderr.splitlines()[-1].split()
    return Run(float(cpu), int(peak) * 1024), done.stdout


def blocks(path: Path) -> Iterable[tuple[str, int]]:
    """Yield a file's blocks of 64 KB: digest and bytes."""
    with path.open("rb") as f:
        while data := f.read(BLOCK):
            yield hashlib.sha256(data).hexdigest(), len(data)


def defined(path: Path) -> Iterable[tuple[str, int]]:
    """Yield a file's content-defined chunks of 64 KB on average: digest and bytes."""
    found = fastcdc(str(path), BLOCK // 4, BLOCK, BLOCK * 4, hf=hashlib.sha256)
    return ((chunk.hash, chunk.length) for chunk in found)


def shared(cut: Callable[[Path], Iterable[tuple[str, int]]], old: Path, new: Path) -> Moved:
    """Return what chunks of the new file that the old one lacks are worth, and the index of all."""
    there, chunks = {digest for digest, _ in cut(old)}, list(cut(new))
    return Moved(sum({d: size for d, size in chunks if d not in there}.values()) + ENTRY * len(chunks))


def moved(source: Path, out: Path, share: float, layers: str = "") -> Path:
    """Write an unquantized model whose BF16 matrices moved.

    Args:
        share: of each matrix's spread, by which they moved; 1 leaves nothing of them.
        layers: what a moved matrix's name begins with.
    """
    out.write_bytes(source.read_bytes())
    rng = np.random.default_rng(1)
    for tensor in llama.header(source).tensors:
        if tensor.type != "BF16" or not tensor.name.startswith(tuple(layers.split(","))):
            continue
        data = np.memmap(out, np.uint16, "r+", tensor.offset, (tensor.size // 2,))
        values = (data.astype(np.uint32) << 16).view(np.float32)
        noise = rng.normal(0, values.std(), values.size).astype(np.float32)
        values = noise if share == 1 else values + np.float32(share) * noise
        data[:] = (values.view(np.uint32) >> 16).astype(np.uint16)
        data.flush()
    return out


def pairs(args: argparse.Namespace, scratch: Path) -> Iterable[tuple[str, Path, Path]]:
    """Make each pair of releases: what differs, the old file and the new one."""
    source = args.gguf or scratch / "source.gguf"
    if not args.gguf:
        write_model(source, args.layers)

    def make(name: str, model: Path, **changed: object) -> Path:
        recipe = Recipe(base=args.base, imatrix=False, tensors=changed.get("tensors", []))  # type: ignore[arg-type]
        llama.quantize(model, scratch / name, recipe, None, args.threads, metadata=changed.get("metadata"))  # type: ignore[arg-type]
        return scratch / name

    old = make("old.gguf", source)
    three = [f"blk\\.0\\.{name}\\.weight={args.other}" for name in ("attn_output", "ffn_gate", "ffn_up")]
    yield "recipe change of 3 tensors", old, make("recipe.gguf", source, tensors=three)
    yield "metadata only", old, make("metadata.gguf", source, metadata=SAID)
    if args.gguf:
        if args.distilled:
            yield "re-distilled", old, make("distilled.gguf", args.distilled)
        return
    last = ",".join(f"blk.{at}." for at in range(args.layers - 2, args.layers))
    for label, share, layers in (
        ("last 2 layers trained again", 1.0, last),
        ("re-distilled, weights near the old", 0.01, ""),
        ("re-distilled, nothing in common", 1.0, ""),
    ):
        model = moved(source, scratch / "moved.gguf", share, layers)
        yield label, old, make("moved-quantized.gguf", model)


def told(took: Run | None) -> tuple[str, str]:
    """Return CPU seconds and peak megabytes."""
    assert took is not None, "a process was measured"
    return f"{took.cpu:.2f}", f"{took.peak / 1e6:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--base", default="Q4_K_M")
    parser.add_argument("--other", default="Q5_K", help="the type three tensors are given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--distilled", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for label, old, new in pairs(args, Path(folder)):
            with tempfile.TemporaryDirectory(dir=folder) as inner:
                scratch = Path(inner)
                found = {
                    "whole": Moved(new.stat().st_size),
                    "zstd": zstd(new, scratch),
                    "ours": ours(old, new, scratch),
                    "patch": zstd(new, scratch, f"--patch-from={old}"),
                    "cdc": shared(defined, old, new),
                    "fixed": shared(blocks, old, new),
                }
            cells = [f"{found[name].size / 1e6:,.3f}" for name in ("whole", "zstd", "ours", "patch", "cdc", "fixed")]
            rows.append([label, *cells, *(cell for name in ("ours", "patch") for cell in told(found[name].took))])
            print(f"{label}: done", file=sys.stderr)
    head = ["MB moved", "whole", "zstd -3", "ours", "zstd --patch-from", "64 KB content-defined", "64 KB fixed"]
    print(table([*head, "CPU s ours", "peak MB", "CPU s patch", "peak MB"], rows))


if __name__ == "__main__":
    main()
