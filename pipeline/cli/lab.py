"""The commands that show everything at once on one machine: `demo`, and `lab`, which measures, breaks and tunes it."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline.catalog.golden import parse_golden
from pipeline.catalog.names import Channel
from pipeline.cli import output
from pipeline.cli.access import Access, add_json_option, add_registry_option, add_trust_options, trust_file
from pipeline.cli.command import Commands, add, needs
from pipeline.errors import CatalogError, RegistryError, StageError
from pipeline.manifest.rules import Seen
from pipeline.ports import files
from pipeline.ports.machine import facts
from pipeline.registry import consume

if TYPE_CHECKING:
    from pipeline.lab.laboratory import Findings, Laboratory
    from pipeline.lab.site import Site
    from pipeline.lab.tour import Answered, Broken, Tour

_HEAD = ("request", "pool", "endpoint", "variant", "reason", "ms", "tokens", "answer")
_WIDEST = 36  # characters of an answer
_LEAST_S = 10.0  # of a load
_LEAST_REQUESTS = 100  # the large server gets a tenth or more
_PROGRAMS = {
    "qemu-aarch64": "checks for arm64 are left out (make emulators)",
    "qemu-riscv64": "checks for riscv64 are left out (make emulators)",
    "kubectl": "needed on clusters alone",
}


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    demo = add(
        commands,
        "demo",
        _demo,
        "start two nodes, a large server and a gateway from a release, and show where requests go and why",
        "demo",
        "demo --no-stay",
        "demo --registry s3://models/releases --trust trust.yaml --channel stable",
    )
    demo.add_argument(
        "--stay",
        action=argparse.BooleanOptionalAction,
        default=sys.stdin.isatty(),
        help="keep everything up until Ctrl-C (default: where standard input is a terminal)",
    )
    _add_release_options(demo)
    lab = add(
        commands,
        "lab",
        _lab,
        "four nodes, a large server, gateway and controller on this machine: load, faults, tuning, report",
        "lab",
        "lab --seconds 20 --rate 6",
        "lab --out build/lab --registry s3://models/releases --trust trust.yaml --channel stable",
    )
    lab.add_argument("--rate", type=float, default=12.0, metavar="N", help="requests a second (default: 12)")
    lab.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of each of five loads (default: 60)")
    lab.add_argument(
        "--out", type=Path, default=Path("build/lab"), metavar="DIR",
        help="report, messages, journal, what the simulation was given (default: build/lab)",
    )  # fmt: skip
    _add_release_options(lab)
    add_json_option(lab)


def _add_release_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--channel", type=Channel, choices=list(Channel), default=Channel.DEV, metavar="NAME")
    add_registry_option(parser)
    add_trust_options(parser)


def _demo(args: argparse.Namespace) -> None:
    with needs("the demo needs", "lab"):
        from pipeline.lab.site import Site
        from pipeline.lab.tour import Tour
    (release, _), logs = _release(args), Path(tempfile.mkdtemp(prefix="edge-release-demo-logs-"))
    try:
        with tempfile.TemporaryDirectory(prefix="edge-release-demo-") as folder:
            site = Site(Path(folder), logs, release, output.note)
            asyncio.run(_run(site, Tour(site), stay=args.stay))
    except Exception:
        output.note(f"the messages of all processes are in {logs}")
        raise
    except (KeyboardInterrupt, asyncio.CancelledError) as e:
        shutil.rmtree(logs)
        raise KeyboardInterrupt from e
    shutil.rmtree(logs)


def _lab(args: argparse.Namespace) -> None:
    with needs("the lab needs", "lab"):
        from pipeline.lab.driver import require_locust
        from pipeline.lab.laboratory import NODES, Findings, Laboratory, Plans, write_pki
        from pipeline.lab.sheet import document, html
        from pipeline.lab.site import LARGE, Site

        require_locust()
    from pipeline.report import page

    page.require_libraries()
    if args.seconds < _LEAST_S or args.rate * args.seconds < _LEAST_REQUESTS:
        raise CatalogError(
            "that is too little to measure",
            hint=f"--seconds {_LEAST_S:.0f} at least, and --rate so that a load has {_LEAST_REQUESTS} requests",
        )
    args.out.mkdir(parents=True, exist_ok=True)
    machine, plans = facts(), Plans(args.rate, args.seconds)
    found = Findings(output.note if args.json else output.say)
    with found.step("take inventory"):
        _tell(found, _inventory(machine))
    with found.step("verify the release"):
        release, named = _release(args)
        _tell(found, named)
    with tempfile.TemporaryDirectory(prefix="edge-release-lab-") as folder:
        site = Site(Path(folder), args.out, release, output.note, nodes=NODES, pki=Path(folder) / "pki")
        write_pki(Path(folder) / "pki", (*NODES, LARGE))
        with tqdm(total=plans.search.runs, unit=" runs", leave=False, disable=None, file=sys.stderr, delay=1) as bar:
            lab = Laboratory(site, plans, found, lambda done: bar.update(done - bar.n))
            try:
                asyncio.run(_experiment(site, lab))
            except asyncio.CancelledError as e:
                raise KeyboardInterrupt from e
    report = args.out / "lab.html"
    files.write(report, html(found, machine, named[0]).encode())
    minutes = sum(s.seconds for s in found.steps) / 60
    found.say(f"\nreport: {report}, policy: {args.out / 'policy.yaml'}, {minutes:.1f} minutes")
    if args.json:
        output.emit(document(found))
    if found.failures:
        raise StageError(f"{found.failures} requests failed", hint=f"see {report} and the messages in {args.out}")


def _tell(found: Findings, lines: Sequence[str]) -> None:
    for line in lines:
        found.say(f"   {line}")


async def _experiment(site: Site, lab: Laboratory) -> None:
    _end_when_told()
    try:
        await lab.run()
    finally:
        output.note("ending all processes")
        await site.close()


def _end_when_told() -> None:
    """Let Ctrl-C and SIGTERM cancel the task that calls this."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "asyncio.run makes one"
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job is started deaf to the first
        loop.add_signal_handler(number, task.cancel)


def _inventory(machine: Mapping[str, str]) -> list[str]:
    """Return what this machine is and has, a line each."""
    lines = [f"{name}: {value}" for name, value in machine.items()]
    for program, use in _PROGRAMS.items():
        lines.append(f"{program}: {shutil.which(program) or f'not there; {use}'}")
    return lines


def _release(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the flags that name the release, which verifies, and whom it is trusted by; and what it is, in lines."""
    access = Access(args)
    if not consume.releases(access.store, access.line):
        raise RegistryError(f"{access.registry} has no release of {access.line}", hint="run `make release` first")
    accepted = consume.fetch(
        access.store, opener=access.opener, line=access.line, seen=Seen(), now=datetime.now(UTC), channel=args.channel
    )
    trust = args.trust or trust_file(access.line)
    flags = ["--registry", access.registry, "--line", access.line, "--trust", str(trust), "--channel", args.channel]
    release = accepted.manifest.release
    told = [f"release {release.line} {release.version} ({release.tag}), channel {args.channel}"]
    for v in accepted.manifest.predicate.variants:
        proven = ", ".join(f"{e.runner} {e.quality.exact_match:.3f}" for e in v.evidence)
        told.append(f"{v.name}: {sum(f.size for f in v.files) / 1e6:.2f} MB, exact match {proven}")
    return flags, told


async def _run(site: Site, tour: Tour, *, stay: bool) -> None:
    _end_when_told()
    try:
        output.note("starting two nodes, a large server and the gateway: half a minute, most of it for torch")
        await site.open()
        output.say(f"status page: {site.url}/status")
        await _show(site, tour)
        if stay:
            await _stay(site)
    finally:
        output.note("ending all processes")
        await tour.close()
        await site.close()


async def _show(site: Site, tour: Tour) -> None:
    from pipeline.lab.site import LARGE
    from pipeline.lab.tour import HURRIED, Asked, long_prompt, requests

    prompts = parse_golden(site.golden.read_text(encoding="utf-8"), site.golden.name)
    output.say(f"models: {', '.join(await tour.models())}")
    answers = [await tour.ask(asked) for asked in requests(prompts)]
    output.say(f"\n{_table(answers)}\n")
    output.say(_broken(await tour.break_stream(prompts)))
    await site.kill(LARGE)
    answers.append(await tour.ask(Asked("a long prompt, without the large server", long_prompt(prompts))))
    refused = [f"{a.shown} ({a.reason})" for a in answers if a.endpoint is None and a.shown != HURRIED]
    if refused:
        raise StageError(f"refused: {', '.join(refused)}", hint=f"see {site.logs}")
    output.say(_degraded(answers[-1], LARGE))


async def _stay(site: Site) -> None:
    """Keep everything up until Ctrl-C, or SIGTERM."""
    from pipeline.lab.site import LARGE

    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await site.start(LARGE)
    output.say(f"\nOpenAI's API: {site.url}/v1, status page: {site.url}/status\nCtrl-C ends everything")
    await ended.wait()


def _table(answers: Sequence[Answered]) -> str:
    rows = [
        [
            a.shown, a.pool or "-", a.endpoint or "-", a.variant or "-", a.reason, f"{a.took_ms:.0f}",
            str(a.tokens or "-"), a.answer if len(a.answer) <= _WIDEST else f"{a.answer[: _WIDEST - 1]}…",
        ]
        for a in answers
    ]  # fmt: skip
    return output.table(_HEAD, rows, right={"ms", "tokens"})


def _broken(found: Broken) -> str:
    same = "with the text" if found.same else "with the answer" if found.answered else "without the answer"
    return (
        f"{found.killed} was killed (kill -9) in the middle of a stream: {found.edge['endpoint']} went on after "
        f"{found.after} pieces.\n  The client got one stream of {found.tokens} tokens, {same} of the same request "
        "undisturbed."
    )


def _degraded(found: Answered, killed: str) -> str:
    marked = "and says that it is degraded" if found.degraded else "as good"
    return (
        f"{killed} was killed (kill -9): the long prompt is answered by {found.endpoint} ({found.reason}).\n"
        f"  The answer is {found.variant}'s, {marked}: {found.answer}"
    )
