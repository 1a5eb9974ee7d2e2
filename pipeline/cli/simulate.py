"""The commands that try a fleet before there is one: `simulate`, and `tune` which searches its thresholds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline.catalog.names import RunnerClass
from pipeline.cli import output
from pipeline.cli.access import Access, add_consumer_options
from pipeline.cli.command import Commands, add, needs
from pipeline.errors import CatalogError
from pipeline.ports import files

if TYPE_CHECKING:
    from pipeline.catalog.document import Document
    from pipeline.lab.simulation.results import Results
    from pipeline.lab.simulation.scenario import Scenario
    from pipeline.lab.simulation.tune import Tuned

OUT = Path("tuned-policy.yaml")
_ABOUT = """\
Scenarios that come with it: lab, lab-pi, lab-cluster, lab-nvlink, retail, industrial, bursts; or name a YAML file.
docs/simulation.md says what is simulated, from which figures, and what had to be assumed.
"""


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    simulate = add(
        commands,
        "simulate",
        _simulate,
        "run a fleet in discrete events, with the routing and the controller of production",
        "simulate",
        "simulate --scenario lab-pi --seed 7 --json",
        "simulate --scenario retail --requests 200000 --html retail.html",
        "simulate --scenario lab --replay journal.jsonl --policy tuned.yaml",
        "simulate --scenario lab --from-release --channel stable",
    )
    simulate.epilog = f"{_ABOUT}\n{simulate.epilog}"
    add_run_options(simulate)
    simulate.add_argument("--policy", type=Path, metavar="FILE", help="a routing policy in place of the scenario's")
    simulate.add_argument(
        "--replay",
        type=Path,
        action="append",
        metavar="FILE",
        help="the requests of a gateway's journal instead of drawn ones; again for further sites",
    )
    simulate.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots, too")
    add_consumer_options(simulate)

    tune = add(
        commands,
        "tune",
        _tune,
        "search the thresholds of routing and controller on a simulated fleet, and write the policy",
        "tune",
        "tune --scenario retail --candidates 54 --out policy.yaml",
        "tune --scenario lab --hours 4 --seed 7 --reports 10 --json",
        "tune --scenario bursts --controller-out controller.yaml",
    )
    add_run_options(tune)
    tune.add_argument("--policy", type=Path, metavar="FILE", help="the policy in force, in place of the scenario's")
    tune.add_argument("--out", type=Path, default=OUT, metavar="FILE", help=f"the policy (default: {OUT})")
    tune.add_argument("--controller-out", type=Path, metavar="FILE", help="the controller's settings, too")
    tune.add_argument("--candidates", type=int, default=27, metavar="N", help="tried in each of two rounds (27)")
    tune.add_argument("--trace", type=int, default=3000, metavar="N", help="requests of the shortest trace (3000)")
    tune.add_argument("--reports", type=int, default=5, metavar="N", help="seeds that report what was gained (5)")
    add_consumer_options(tune)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which fleet is simulated, and for how long."""
    parser.add_argument("--scenario", default="lab", metavar="NAME|FILE", help="what is simulated (default: lab)")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (default: 1)")
    parser.add_argument("--requests", type=int, metavar="N", help="end after N requests, without the warm-up's")
    parser.add_argument("--hours", type=float, metavar="H", help="simulated hours (default: the scenario's)")
    parser.add_argument("--no-forecast", action="store_true", help="let the controller only react")
    parser.add_argument(
        "--from-release", action="store_true", help="service times from the evidence of a verified release"
    )


def _simulate(args: argparse.Namespace) -> None:
    with needs("a simulation needs", "lab"):
        from pipeline.lab.simulation.results import results
        from pipeline.lab.simulation.run import run
    if args.replay and (args.requests is not None or args.hours is not None):
        raise CatalogError(
            "--replay takes as many requests as the journals hold", hint="leave out --requests and --hours"
        )
    scenario, blocks = chosen(args), None
    if args.replay:
        from pipeline.lab.simulation.replay import replay

        journals = [files.load(path, lambda text, _: text.splitlines()) for path in args.replay]
        found = replay(scenario, journals, args.seed)
        scenario, blocks = found.scenario, [found.block]
    with bar(scenario, args.requests) as progress:
        ran = run(scenario, args.seed, requests=args.requests, blocks=blocks, progress=progress)
    made = results(ran)
    if args.html:
        from pipeline.lab.simulation.page import html
        from pipeline.report import page

        page.require_libraries()
        files.write(args.html, html(made, scenario).encode())
    if args.json:
        output.emit(made.model_dump(mode="json"))
        return
    _say(made)
    if args.html:
        output.say(f"page: {args.html}")


def chosen(args: argparse.Namespace) -> Scenario:
    """Return the scenario that flags lead to."""
    from pipeline.lab.simulation.scenario import load
    from pipeline.peers.policy import parse_policy

    found = load(args.scenario)
    if args.hours is not None:
        if not 0 < args.hours < inf:
            raise CatalogError("--hours is no number above 0", hint="give the hours to simulate")
        found = found.changed(hours=args.hours)
    if args.requests is not None and args.requests < 1:
        raise CatalogError("--requests is less than 1", hint="give the requests to simulate")
    if args.seed < 0:
        raise CatalogError("--seed is less than 0", hint="give a whole number from 0 on")
    if getattr(args, "policy", None):
        found = found.steered(files.load(args.policy, parse_policy))
    if args.no_forecast:
        found = found.unforeseeing()
    return _measured(args, found) if args.from_release else found


def _measured(args: argparse.Namespace, scenario: Scenario) -> Scenario:
    """Return a scenario whose servers are as fast as a verified release's evidence says."""
    from datetime import UTC, datetime

    from pipeline.catalog.names import Channel
    from pipeline.lab.simulation.figures import evidenced
    from pipeline.manifest.rules import Seen
    from pipeline.registry import consume

    access = Access(args)
    if access.project is None:
        raise CatalogError("there is no params.yaml with costs here", hint="run it in the project")
    channel = None if args.release else args.channel or Channel.DEV
    accepted = consume.fetch(
        access.store, opener=access.opener, line=access.line, seen=Seen(), now=datetime.now(UTC), channel=channel,
        version=args.release,
    )  # fmt: skip
    costs = {RunnerClass(name): cost for name, cost in access.project.params.costs.items()}
    base = scenario.speeds(scenario.edge.figures)
    found = {"edge-measured": evidenced(accepted.manifest, scenario.edge.variant, costs, base)}
    changes: dict[str, object] = {"edge": scenario.edge.model_copy(update={"figures": "edge-measured"})}
    if scenario.core is not None:
        base = scenario.speeds(scenario.core.figures)
        found["core-measured"] = evidenced(accepted.manifest, scenario.core.variant, costs, base)
        changes["core"] = scenario.core.model_copy(update={"figures": "core-measured"})
    for name, figures in found.items():
        output.note(f"{name.split('-')[0]}: {figures.sources['token_ms']}, {figures.token_ms:.3g} ms a token")
    return scenario.changed(figures={**scenario.figures, **found}, **changes)


def _tune(args: argparse.Namespace) -> None:
    with needs("a search needs", "lab"):
        from pipeline.lab.simulation.tune import Plan, tune
    if args.candidates < 3 or args.trace < 100 or args.reports < 2:
        raise CatalogError("that is too little to choose by", hint="3 candidates, 100 requests, 2 reports at least")
    scenario = chosen(args)
    if args.controller_out and scenario.controller is None:
        raise CatalogError(f"the scenario {scenario.name} has no controller", hint="leave out --controller-out")
    reported = args.requests or 10 * args.trace
    plan = Plan(args.candidates, args.trace, reported, args.reports, args.seed)
    with tqdm(total=plan.runs, unit=" runs", leave=False, disable=None, file=sys.stderr) as shown:
        best, found = tune(scenario, plan, lambda done: shown.update(done - shown.n))
    files.write(args.out, _document(best.first_policy, found).encode())
    if args.controller_out:
        assert best.controller is not None, "the scenario has one"
        files.write(args.controller_out, _document(best.controller, found).encode())
    if args.json:
        output.emit(found.model_dump(mode="json"))
        return
    moved = [[name, f"{found.was[name]:g}", f"{value:g}"] for name, value in found.values.items()]
    output.say(output.table(("threshold", "was", "tuned"), moved))
    gains = [
        [f.name, f"{f.before:,.4g}", f"{f.after:,.4g}", f"{f.change:+,.3g}", f"{f.low:+,.3g} to {f.high:+,.3g}"]
        for f in found.figures
    ]
    head = (f"on {len(found.seeds)} other seeds", "before", "after", "change", "95 %")
    output.say("\n" + output.table(head, gains))
    output.say(f"\npolicy: {args.out}" + (f", {args.controller_out}" if args.controller_out else ""))


def _document(settings: Document, found: Tuned) -> str:
    """Return settings as YAML, with where they come from."""
    import yaml

    head = f"# Tuned on the scenario {found.scenario}, {found.tried} candidates; `edge-release tune` says its gains.\n"
    return head + yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


@contextmanager
def bar(scenario: Scenario, requests: int | None) -> Iterator[Callable[[float, int], object]]:
    """Yield a callback that draws how far a run is, on standard error."""
    total = requests if requests is not None else round(scenario.hours * 3600)
    unit = "requests" if requests is not None else "s"
    with tqdm(total=total, unit=f" {unit}", unit_scale=True, leave=False, disable=None, file=sys.stderr) as shown:
        yield lambda seconds, count: shown.update((count if requests is not None else round(seconds)) - shown.n)


def _say(found: Results) -> None:
    from pipeline.lab.simulation import text

    output.say(text.title(found))
    output.say("\n" + output.table(text.TIMES, text.times(found)))
    output.say("\n" + output.table(text.OBJECTIVES, text.objectives(found), right={"kept by", "missed"}) + "\n")
    for name, value in text.facts(found):
        output.say(f"{name:10}{value}")
