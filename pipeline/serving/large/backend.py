"""How a large variant is served: by vLLM where it is installed, else by transformers' continuous batching.

Rules: both listen on loopback, want the node's key, speak OpenAI's API and tell their figures under vLLM's names. vLLM
reads a whole model, so the shards are joined for it once, beside them; the own engine reads a rank's shard each.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.model import hf, torchrun
from pipeline.model.join import join
from pipeline.model.layout import Layout
from pipeline.peers.status import Pool
from pipeline.ports import beside, nvml, process
from pipeline.ports.beside import Program
from pipeline.serving.large import probe, sizing, worker
from pipeline.serving.node import sensors
from pipeline.serving.node.engine import HOST, Address, Dialect, Engine
from pipeline.serving.node.releases import Held
from pipeline.serving.node.sizing import SHARE, Asked, Sizing, size

HINT = "see its messages above; it may lack memory: give fewer --slots or a shorter --context"
JOINED = "joined"
_ON_CPU = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # else vLLM wants a NUMA node for each rank
VLLM = Dialect("engine", "vllm:num_requests_running", "vllm:num_requests_waiting", told=True)


class Kind(StrEnum):
    """An engine."""

    VLLM = "vllm"
    TRANSFORMERS = "transformers"


def installed() -> Kind:
    """Return vLLM where its command is on PATH."""
    return Kind.VLLM if shutil.which("vllm") else Kind.TRANSFORMERS


@dataclass(frozen=True)
class Ranks:
    """A large variant over the ranks of its shards."""

    kind: Kind
    asked: Asked
    home: Path
    pool: Pool = Pool.NVLINK
    dialect: Dialect = VLLM

    def size(self, held: Held) -> Sizing:
        """Return how to start it on this machine; raises PipelineError where it does not fit."""
        layout = Layout.read(held.model)
        gpus = nvml.gpus()[: layout.degree]
        memory = sum(gpu.memory_bytes or 0 for gpu in gpus) if gpus else sensors.memory()
        model = sizing.model(held.entry, hf.read_json(held.model / hf.CONFIG), layout.matrices, gpu=bool(gpus))
        threads = max(1, process.processors() // layout.degree)
        most = sizing.GPU_SLOTS if gpus else sizing.CPU_SLOTS
        return size(model, memory=memory, cores=threads, asked=self.asked, most=most)

    async def launch(self, held: Held, sizing: Sizing) -> tuple[Program, Address]:
        """Start it and return it with its address; raises PipelineError where it cannot be started."""
        address = Address.new()
        degree = Layout.read(held.model).degree
        env: dict[str, str] = {}
        if self.kind is Kind.VLLM:
            whole = join(held.model, self.home / JOINED / held.model_sha256)
            program_path, gpu = process.find("vllm", HINT), bool(nvml.gpus())
            argv = vllm(program_path, whole, held.entry.name, degree=degree, sizing=sizing, port=address.port, gpu=gpu)
            if not gpu:
                env = {**_ON_CPU, "OMP_NUM_THREADS": str(sizing.threads), **os.environ}
        else:
            own = worker.arguments(held.model, held.entry.name, address.port, sizing)
            argv, env = torchrun.command(worker.__name__, own, degree=degree, threads=sizing.threads)
        program = await beside.start(
            argv, hint=HINT, env={**env, worker.KEY_VARIABLE: address.key}, name="engine", reason=worker.REASON
        )
        return program, address

    async def check(self, engine: Engine, held: Held) -> str | None:
        """Return None where it answers the golden prompts right, else the reason why not; raises as `probe.check`."""
        return await probe.check(engine, held.entry.name, held.questions, hf.end_tokens(held.model))


def vllm(
    program: str, folder: Path, name: str, *, degree: int, sizing: Sizing, port: int, gpu: bool
) -> list[str]:  # fmt: skip
    """Return vLLM's command line (https://docs.vllm.ai/en/latest/cli/serve.html).

    Its cache takes what a GPU has left; on a CPU, whose memory all ranks and others share, what was planned.
    """
    share = SHARE / 2 if sizing.beside else SHARE
    memory = (
        ["--gpu-memory-utilization", str(share)] if gpu else ["--kv-cache-memory-bytes", str(sizing.bytes // degree)]
    )
    return [
        program, "serve", str(folder), "--served-model-name", name, "--host", HOST, "--port", str(port),
        "--tensor-parallel-size", str(degree), "--max-num-seqs", str(sizing.slots),
        "--max-model-len", str(sizing.context), "--seed", "0", "--disable-uvicorn-access-log", *memory,
    ]  # fmt: skip
