"""One rank of the large server: its shard, the engine, and on rank 0 the door.

    python -m pipeline.serving.large.worker FOLDER --name large-x86_64 --port 8001 --slots 8 --context 4096 --threads 1

Under torchrun where the shards are several. The key is read from VLLM_API_KEY, where vLLM reads it.

Rules: computed as the checks do (`model.parallel`); a rank whose starter is gone is killed by the kernel; SIGTERM ends
rank 0, which ends the others; a rank that fails ends all.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.errors import in_a_line
from pipeline.ports import process
from pipeline.ports.torch_env import pin_cpu_kernels
from pipeline.serving.node.engine import HOST
from pipeline.serving.node.sizing import Sizing

KEY_VARIABLE = "VLLM_API_KEY"
WATCH_S = 0.5
REASON = "failed: "


def main(argv: list[str] | None = None) -> int:
    """Be one rank; return the exit status."""
    args = _parser().parse_args(argv)
    process.die_with_parent()
    pin_cpu_kernels()
    try:
        return _rank(args)
    except Exception as e:  # the outermost loop of a rank: whatever it is, the door must hear of it
        print(f"{REASON}rank {os.environ['RANK']}: {in_a_line(e)}", file=sys.stderr, flush=True)  # noqa: T201 - its log
        return 1


def arguments(folder: Path, name: str, port: int, sizing: Sizing) -> list[str]:
    """Return the command line's arguments."""
    sizes = {"port": port, "slots": sizing.slots, "context": sizing.context, "threads": sizing.threads}
    return [str(folder), "--name", name, *(f"--{key}={value}" for key, value in sizes.items())]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="worker", description="one rank of the large server")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True)
    for number in ("port", "slots", "context", "threads"):
        parser.add_argument(f"--{number}", type=int, required=True)
    return parser


def _rank(args: argparse.Namespace) -> int:
    import torch
    import torch.distributed as dist

    from pipeline.model import parallel
    from pipeline.serving.large import batching

    torch.set_num_threads(args.threads)
    # Batches are the only collectives under way; read when the group begins (transformers, ContinuousBatchingConfig).
    os.environ.setdefault("NCCL_GRAPH_MIXING_SUPPORT", "0")
    place = parallel.enter(timedelta(minutes=10))
    if place.rank:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # rank 0 says when
    model = parallel.load(args.folder, place)
    parallel.tell_engine(model, place)
    manager = batching.start(model, slots=args.slots, context=args.context)
    try:
        status = _follow(manager) if place.rank else asyncio.run(_serve(args, manager))
    finally:
        manager.stop(block=True, timeout=10, hard_stop=True)
    dist.destroy_process_group()
    return status


def _follow(manager: Any) -> int:
    """Take part until rank 0 ends it."""
    manager._generation_thread.join()
    return 1 if manager.background_thread_status.fatal_error else 0


async def _serve(args: argparse.Namespace, manager: Any) -> int:
    import uvicorn

    from pipeline.model.chat import Chat
    from pipeline.serving.large.answering import Answering
    from pipeline.serving.large.app import App, Served
    from pipeline.serving.large.batching import Batching, Sampling
    from pipeline.serving.large.metrics import Metrics

    template = Chat(args.folder)
    engine = Batching(manager, sorted(template.ends))
    metrics = Metrics(args.name, engine.load)
    served = Served(args.name, args.context, engine.vocabulary, Sampling.of(args.folder))
    answering = Answering(engine, template.vocabulary, template.ends, metrics)
    app = App(served, template, answering, metrics, alive=lambda: engine.alive, key=os.environ.pop(KEY_VARIABLE))
    config = uvicorn.Config(
        app.asgi, host=HOST, port=args.port, lifespan="off", log_level="warning", access_log=False,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = uvicorn.Server(config)
    watching = asyncio.create_task(_watch(server, engine))
    await server.serve()
    watching.cancel()
    return 0 if engine.alive else 1


async def _watch(server: Any, engine: Any) -> None:
    """End the door when the engine is gone."""
    while engine.alive:
        await asyncio.sleep(WATCH_S)
    server.should_exit = True


if __name__ == "__main__":
    code = main()
    # A collective that waits for a rank that is gone holds its thread for ever; the status says what is to be said.
    if threading.active_count() > 1:
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
