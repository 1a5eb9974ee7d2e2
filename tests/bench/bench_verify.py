"""How fast a folder is verified, against `openssl dgst -sha256` on the same file.

Usage: python -m tests.bench.bench_verify [GIGABYTES] [FOLDER]

Each runs in a process of its own, in turns, on a file that was read into the page cache right before. CPU seconds (user and system) are
compared rather than wall-clock ones, so that other work on the machine matters little; the best of five rounds counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 5
_OURS = """
import sys
from pathlib import Path
from pipeline.manifest.evidence import File
from pipeline.registry import tree
folder, size, digest = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
wanted = [] if digest == "none" else [File(name="weights.bin", size=size, sha256=digest)]
tree.check(folder, wanted, beside={"weights.bin"})
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def main(gigabytes: float, folder: Path) -> None:
    path = folder / "weights.bin"
    size = int(gigabytes * 1e9)
    block = os.urandom(1 << 20)
    with path.open("wb") as f:
        for _ in range(size >> 20):
            f.write(block)
        f.write(block[: size & 0xFFFFF])
    digest = subprocess.run(["openssl", "dgst", "-sha256", "-r", path], capture_output=True, text=True, check=True)
    wanted = digest.stdout.split()[0]
    stock, start, whole, peak = [], [], [], 0
    for _ in range(ROUNDS):
        stock.append(_cpu(["openssl", "dgst", "-sha256", str(path)], path)[0])
        start.append(_cpu([sys.executable, "-c", _OURS, str(folder), str(size), "none"], path)[0])
        seconds, said = _cpu([sys.executable, "-c", _OURS, str(folder), str(size), wanted], path)
        whole.append(seconds)
        peak = max(peak, int(said))
    ours = min(whole) - min(start)
    print(f"file                      {size / 1e9:.2f} GB")
    print(f"openssl dgst -sha256      {min(stock):.2f} s CPU, {size / 1e9 / min(stock):.2f} GB/s")
    print(
        f"tree.check                {ours:.2f} s CPU, {size / 1e9 / ours:.2f} GB/s; Python starts in {min(start):.2f} s"
    )
    print(f"speed against openssl     {min(stock) / ours:.2f} (with Python's start {min(stock) / min(whole):.2f})")
    print(f"peak memory               {peak / 1024:.0f} MiB")


def _cpu(command: list[str], path: Path) -> tuple[float, str]:
    with path.open("rb", buffering=0) as f:
        while f.read(1 << 20):
            pass
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system, done.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as scratch:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0, Path(scratch))
