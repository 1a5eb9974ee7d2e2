"""How the ranks of a split model are started: by torchrun where they are several, as a program of its own else.

Rules: threads are fixed, because the order of additions affects bytes; kernels are those of the checks (`torch_env`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.ports.torch_env import PINS

_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def command(module: str, arguments: Sequence[str], *, degree: int, threads: int) -> tuple[list[str], dict[str, str]]:
    """Return the command line that runs a module on `degree` ranks of this machine, and the variables it needs."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={degree}"]
    # The module is the installed one, whatever lies in the folder this was started in.
    env = {"PYTHONSAFEPATH": "1", **PINS, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the driver's order, by which GPUs are looked at and metered
    if degree == 1:
        torchrun, env = [], env | _ALONE
    return [sys.executable, *torchrun, "-m", module, *arguments], env
