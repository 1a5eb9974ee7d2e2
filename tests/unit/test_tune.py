"""The search for thresholds: what it may try, that it never makes worse, and what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cli
from pipeline.control.settings import parse_settings
from pipeline.lab.simulation.dials import CONTROLLER, POLICY, Dial, dials, turned
from pipeline.lab.simulation.results import results
from pipeline.lab.simulation.run import run
from pipeline.lab.simulation.scenario import load
from pipeline.lab.simulation.tune import Plan, loss, tune
from pipeline.peers.policy import Policy, parse_policy

SMALL = Plan(candidates=6, requests=300, reported=1500, reports=3, seed=1)


@given(st.sampled_from(POLICY + CONTROLLER), st.floats(0, 1))
def test_a_dial_stays_within_its_bounds(dial: Dial, share: float) -> None:
    """Whatever share of its way: never below the lowest value nor above the highest."""
    assert dial.low <= dial.value(share) <= dial.high


def test_settings_that_are_refused_are_no_candidates() -> None:
    """A target of slots below what counts as calm is none of the controller's settings."""
    scenario = load("bursts")
    known = dials(scenario)
    low = [0.0 if d.label == "scaling.target" else 0.5 for d in known]
    assert turned(scenario, known, low) is None
    assert turned(scenario, known, [0.5] * len(known)) is not None


def test_what_no_request_can_feel_is_not_turned() -> None:
    """No request of a measured site bounds its answer, so that the threshold for such bounds is no dial."""
    scenario = load("lab")
    kinds = {name: kind.model_copy(update={"max_tokens": None}) for name, kind in scenario.traffic.kinds.items()}
    unbounded = scenario.changed(traffic=scenario.traffic.model_copy(update={"kinds": kinds}))
    assert {d.label for d in dials(scenario)} - {d.label for d in dials(unbounded)} == {"policy.long_generation_tokens"}


def test_what_is_fixed_stays_and_is_not_told_of() -> None:
    """What a search says is of the policy that it returns, with the fixed threshold as it was."""
    scenario = load("lab").changed(policy=Policy(cpu=1.0))
    best, found = tune(scenario, SMALL, lambda done: None, {"policy.cpu"})
    assert best.first_policy.cpu == 1.0
    assert "policy.cpu" not in found.values.keys() | found.was.keys()
    assert found.values["policy.queue_wait_ms"] == best.first_policy.queue_wait_ms


def test_a_search_without_a_candidate_keeps_what_is_in_force() -> None:
    """Where the settings refuse whatever the dials say, the scenario comes back as it was."""
    base = load("bursts")
    assert base.controller is not None
    routing = base.controller.routing.model_copy(update={"burn": 50.0, "burn_calm": 40.0})
    scenario = base.changed(history_days=0.0, controller=base.controller.model_copy(update={"routing": routing}))
    best, found = tune(scenario, Plan(candidates=3, requests=100, reported=100, reports=2), lambda done: None)
    assert best == scenario
    assert found.values == found.was


def test_a_search_gains_on_seeds_that_it_did_not_see() -> None:
    """On the lab's fleet even a small search keeps more promises, and the same seed finds the same."""
    best, found = tune(load("lab"), SMALL, lambda done: None)
    again = tune(load("lab"), SMALL, lambda done: None)[1]
    assert found == again
    assert found.requests == SMALL.reported
    assert not set(found.seeds) & {1, 2, 3, 4}
    missed = next(f for f in found.figures if f.name == "global_p95, % missed")
    assert missed.high < 0
    before, after = (results(run(s, 99, requests=3000)) for s in (load("lab"), best))
    usd = before.cost.per_1k_usd or 0.0
    assert loss(after, usd) < loss(before, usd)


def test_the_command_writes_what_gateway_and_controller_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The policy has a higher version than the one in force; both files read back as what they are."""
    out, controller = tmp_path / "policy.yaml", tmp_path / "controller.yaml"
    args = ["tune", "--scenario", "bursts", "--candidates", "3", "--trace", "200", "--reports", "2", "--no-forecast"]
    assert cli.main([*args, "--requests", "400", "--out", str(out), "--controller-out", str(controller)]) == 0
    policy = parse_policy(out.read_text(), "policy.yaml")
    assert parse_settings(controller.read_text(), "controller.yaml").policy == policy
    assert "policy.tiny_prompt_tokens" in capsys.readouterr().out
    assert cli.main([*args, "--reports", "1"]) == 2
    assert cli.main(["tune", "--scenario", "lab", "--controller-out", str(controller)]) == 2
    assert "the scenario lab has no controller" in capsys.readouterr().err
