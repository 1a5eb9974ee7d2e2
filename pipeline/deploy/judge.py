"""Whether a step keeps its promises: golden prompts through the gateway, and figures from Prometheus.

Rules: an answer counts as right if it is what the evidence says; a request that gets none counts as wrong; servers of
the new release must have been among those that answered; a figure that is not there is not a good one, but one to wait
for.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.catalog.golden import GoldenPrompt
from pipeline.deploy.canary import Judged
from pipeline.deploy.settings import Canary, Gate
from pipeline.errors import ToolError
from pipeline.manifest.statement import VariantEntry
from pipeline.peers.affinity import weight
from pipeline.ports.prometheus import Sample

SAMPLE = 5  # servers of the new release that must have answered
TRIES = 8  # sessions that are a server's, until the gateway sends one to it
CANDIDATES = 20  # sessions for each server of the fleet, of which the best are taken


@dataclass(frozen=True)
class Said:
    """An answer through the gateway: its text, and who gave it with which model file; None where there was none."""

    text: str | None
    endpoint: str | None = None
    digest: str | None = None
    problem: str | None = None


# Asks a prompt of a variant in a session.
Ask = Callable[[str, GoldenPrompt, str], Said]
Query = Callable[[str], Sequence[Sample]]


def worth_asking(prompts: Iterable[GoldenPrompt], entry: VariantEntry, per_family: int) -> list[GoldenPrompt]:
    """Return the first prompts of each family that the variant answered right on every runner class."""
    passed = [{a.id for a in e.answers if a.passed} for e in entry.evidence]
    right = set.intersection(*passed) if passed else set()
    found: dict[str, list[GoldenPrompt]] = {}
    for prompt in prompts:
        asked = found.setdefault(prompt.family, [])
        if prompt.id in right and len(asked) < per_family:
            asked.append(prompt)
    return [prompt for asked in found.values() for prompt in asked]


@dataclass(frozen=True)
class Round:
    """What is asked: a variant's prompts, until `servers` (as the gateway calls them) have answered with the model file
    `digest`; `right` is the share of answers that must be, `fleet` how many servers the gateway chooses from.
    """

    variant: str
    prompts: Sequence[GoldenPrompt]
    servers: Sequence[str]
    digest: str
    right: float
    fleet: int


def answers(ask: Ask, asked: Round, now: float) -> Judged:
    """Ask until a sample of the new servers answered every prompt, and judge all that was said."""
    prompts = asked.prompts
    if not prompts:
        return Judged(now, bad=f"{asked.variant} has no golden prompt that it answers right by its evidence")
    wrong, silent, total = list[str](), list[str](), 0
    for name in asked.servers[-SAMPLE:]:
        left = set(range(len(prompts)))
        for session, number in ((s, n) for s in sessions(name, asked.fleet) for n in range(len(prompts))):
            if number not in left:
                continue
            said = ask(asked.variant, prompts[number], session)
            total += 1
            if said.text is None or not prompts[number].accepts(said.text):
                told = said.problem or repr(said.text)[:80]
                wrong.append(f"{prompts[number].id} by {said.endpoint or 'nobody'}: {told}")
            if (said.endpoint, said.digest) == (name, asked.digest):
                left.discard(number)
        silent += [name] if left else []
    if total and len(wrong) > (1 - asked.right) * total:
        return Judged(now, bad=f"{len(wrong)} of {total} golden answers are wrong: {wrong[0]}")
    if silent:
        return Judged(now, pending=f"the gateway sends nothing to {', '.join(silent)} yet")
    return Judged(now)


def sessions(name: str, fleet: int) -> list[str]:
    """Return sessions that belong to a server rather than to another of a fleet, the surest first."""
    candidates = (f"deploy-{i}" for i in range(max(200, CANDIDATES * fleet)))
    return heapq.nlargest(TRIES, candidates, key=lambda session: weight(session, name))


def figures(query: Query, gates: Sequence[Gate], now: float) -> Judged:
    """Return whether every figure is within its bound."""
    bad, pending = list[str](), list[str]()
    for gate in gates:
        try:
            found = [sample.value for sample in query(gate.query)]
        except ToolError as e:
            pending.append(f"{gate.name}: {e.message}")
            continue
        if not found:
            pending.append(f"{gate.name}: there is no figure")
        elif max(found) > gate.most:
            bad.append(f"{gate.name} is {max(found):.3g}, at most {gate.most:g} is allowed")
    return Judged(now, "; ".join(bad) or None, "; ".join(pending) or None)


def both(first: Judged, second: Judged) -> Judged:
    """Return what two say together: either may end a rollout, or hold it."""
    return Judged(max(first.at, second.at), first.bad or second.bad, first.pending or second.pending)


def body(variant: str, prompt: GoldenPrompt, session: str) -> bytes:
    """Return a request of OpenAI's API for a golden prompt."""
    document = {
        "model": variant, "messages": [{"role": "user", "content": prompt.prompt}], "max_tokens": prompt.max_tokens,
        "temperature": 0, "session": session,
    }  # fmt: skip
    return json.dumps(document).encode()


def troubles(pools: Iterable[object]) -> dict[str, str]:
    """Return what servers say is wrong with them, by name, from a gateway's status."""
    found = {}
    for pool in pools:
        for endpoint in pool.get("endpoints", ()) if isinstance(pool, dict) else ():
            if endpoint.get("heard") and endpoint.get("state") == "failed" and endpoint.get("problem"):
                found[str(endpoint["name"])] = f"serves nothing: {endpoint['problem']}"
    return found


def limits(canary: Canary, *, figures: bool) -> str:
    """Return in a line what a step must keep, with figures or without."""
    gates = [f"{g.name} at most {g.most:g}" for g in canary.gates] if figures else []
    return ", ".join([f"{canary.right:.0%} of golden answers right", *gates])
