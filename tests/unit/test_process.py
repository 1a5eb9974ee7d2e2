"""What is asked of the system for a process as a whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Two waves of buffers as connections have them, things that live on between those of the second (too big for the holes that
# the imports left, so that they do lie between), and what stays of it in MiB.
WAVES = """
import sys
import psutil
from pipeline.ports import process

def resident():
    return psutil.Process().memory_info().rss / 2**20

if sys.argv[1] == "given back":
    process.give_back_buffers()
before = resident()
for wave in range(2):
    small, buffers = [], []
    for _ in range(200):
        buffers.append(bytearray(b"x") * (256 << 10))
        small.append(bytes(16 << 10))
    del buffers
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its memory")
@pytest.mark.parametrize(("how", "kept"), [("given back", False), ("as usual", True)])
def test_buffers_of_connections_go_back(how: str, kept: bool) -> None:
    """Without it the same buffers stay with the process, which is what it is for."""
    argv = [sys.executable, "-c", WAVES, how]
    done = subprocess.run(
        argv, env={}, capture_output=True, text=True, check=True
    )  # no MALLOC_ settings of the caller's
    assert (float(done.stdout) > 25) is kept, done.stdout
