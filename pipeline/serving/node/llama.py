"""llama-server: how it is started for a release, how large, and whether it answers right.

Rules: it decodes as the checks did: keys and values in f32, flash attention off. It has no page of its own, fetches
nothing, and lets nobody change its settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.manifest import gguf
from pipeline.peers.status import Pool
from pipeline.ports import beside, process
from pipeline.ports.beside import Program
from pipeline.serving.node import probe, sensors, sizing
from pipeline.serving.node.engine import HINT, HOST, Address, Dialect, Engine
from pipeline.serving.node.releases import Held
from pipeline.serving.node.sizing import BATCH, PROMPT_CACHE, Asked, Sizing

KEY_VARIABLE = "LLAMA_API_KEY"
LLAMA = Dialect("llama-server", "llamacpp:requests_processing", "llamacpp:requests_deferred")


@dataclass(frozen=True)
class LlamaServer:
    """A GGUF variant, served by its release's own llama-server; `asked` is what users want otherwise than computed."""

    asked: Asked
    pool: Pool = Pool.EDGE
    dialect: Dialect = LLAMA

    def size(self, held: Held) -> Sizing:
        """Return how to start it on this machine; raises PipelineError where it does not fit."""
        model = sizing.model(held.entry, _metadata(held))
        return sizing.size(model, memory=sensors.memory(), cores=process.processors(), asked=self.asked)

    async def launch(self, held: Held, sizing: Sizing) -> tuple[Program, Address]:
        """Start it and return it with its address; raises ToolError where it cannot be started."""
        address = Address.new()
        argv = arguments(held.server, held.weights, held.entry.name, sizing, address.port)
        return await beside.start(argv, hint=HINT, env={KEY_VARIABLE: address.key}), address

    async def check(self, engine: Engine, held: Held) -> str | None:
        """Return None where it answers the golden prompts right, else the reason why not; raises as `probe.check`."""
        return await probe.check(
            engine, held.questions,
            templated="tokenizer.chat_template" in _metadata(held), largest=probe.margin(held.entry),
        )  # fmt: skip


def arguments(server: Path, weights: Path, alias: str, sizing: Sizing, port: int) -> list[str]:
    """Return the command line; the key is no part of it, because everyone may read command lines."""
    return [
        str(server), "--model", str(weights), "--alias", alias, "--host", HOST, "--port", str(port),
        "--parallel", str(sizing.slots), "--ctx-size", str(sizing.slots * sizing.context), "--no-kv-unified",
        "--threads", str(sizing.threads), "--ubatch-size", str(BATCH), "--cache-ram", str(PROMPT_CACHE >> 20),
        "--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off", "--fit", "off",
        "--metrics", "--no-ui", "--offline", "--log-verbosity", "2",
    ]  # fmt: skip


def _metadata(held: Held) -> dict[str, gguf.Value]:
    with held.weights.open("rb") as f:
        return dict(gguf.read_header(f, held.weights.stat().st_size).metadata)
