"""The simulation: queues against closed forms, conservation, repetition, and what faults do."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta, timezone
from importlib import resources
from math import factorial, inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import cli
from pipeline.catalog.names import VARIANTS, RunnerClass
from pipeline.errors import CatalogError
from pipeline.lab.simulation.events import Events
from pipeline.lab.simulation.figures import Figures, measured, published
from pipeline.lab.simulation.oscillation import flips, most_within
from pipeline.lab.simulation.page import html
from pipeline.lab.simulation.past import past
from pipeline.lab.simulation.record import Outcome
from pipeline.lab.simulation.replay import replay
from pipeline.lab.simulation.results import Results, results
from pipeline.lab.simulation.run import Ran, run
from pipeline.lab.simulation.scenario import Core, Edge, Faults, Kind, Scenario, Spread, Traffic, load, shipped
from pipeline.lab.simulation.traffic import Arrivals
from pipeline.peers.policy import Policy
from pipeline.serving.decision import Hint, Priority
from pipeline.serving.gateway.settings import Effort, Limits
from tests.support.evidence import PARAMS, measurement
from tests.support.gateways import chat, running
from tests.support.upstreams import says

START = datetime(2026, 11, 2, tzinfo=UTC)
ENDLESS = Policy(queue_depth=1e9, cpu=1.0)


def figures(token_ms: float, slots: int) -> Figures:
    """Return a server that does nothing but decode."""
    return Figures(machine="a test's", token_ms=token_ms, slots=slots, sources={"token_ms": "given", "slots": "given"})


def queue(rate: float, answer: Spread, *, slots: int = 1, token_ms: float = 1.0, hours: float = 10.0) -> Scenario:
    """Return one server behind a gateway that refuses nothing."""
    return Scenario(
        name="queue", about="one server", start=START, hours=hours, edge=Edge(nodes=1, figures="x", jitter_ms=0.0, round_trip_ms=0.0),
        traffic=Traffic(rate=rate, kinds={"k": Kind(share=1.0, prompt=Spread(fixed=1.0), answer=answer, stream=False)}),
        policy=ENDLESS, figures={"x": figures(token_ms, slots)},
    )  # fmt: skip


def small(**changes: Any) -> Scenario:
    """Return three sites before a pool of two, with faults all the time."""
    kinds = {
        "short": Kind(share=0.7, prompt=Spread(median=6.0, p95=18.0), answer=Spread(mean=8.0), distinct=20),
        "long": Kind(share=0.2, prompt=Spread(fixed=400.0), answer=Spread(median=40.0, p95=90.0), max_tokens=300),
        "hinted": Kind(
            share=0.1, prompt=Spread(fixed=9.0), answer=Spread(fixed=4.0), hint=Hint.LARGE, deadline_ms=900.0
        ),
    }
    given: dict[str, Any] = {
        "name": "small", "about": "a test's", "start": START, "hours": 0.5,
        "edge": Edge(sites=3, nodes=2), "core": Core(replicas=2, most=2),
        "traffic": Traffic(rate=0.8, skew=0.3, kinds=kinds),
        "faults": Faults(node_hours=0.2, repair_s=60.0, partition_hours=0.2, partition_s=20.0, core_down=[(600.0, 640.0)]),
    }  # fmt: skip
    return Scenario(**{**given, **changes})


def erlang_c(servers: int, load: float) -> float:
    """Return the probability that a customer of an M/M/c queue waits."""
    last = load**servers / factorial(servers) * servers / (servers - load)
    return last / (sum(load**k / factorial(k) for k in range(servers)) + last)


def seconds_in_system(ran: Ran) -> float:
    """Return the mean time of a request, arrival to end."""
    return sum(ran.record.total_ms) / len(ran.record) / 1000


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_server_with_exponential_work_is_an_mm1_queue(load: float) -> None:
    """The mean time in the system is 1 / (mu - lambda)."""
    found = run(queue(load, Spread(mean=1000.0), hours=12.0 / (1 - load)), 1)
    assert seconds_in_system(found) == pytest.approx(1 / (1 - load), rel=0.06)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (1, 0.8), (4, 0.8)])
def test_servers_with_constant_work_are_an_mdc_queue(servers: int, load: float) -> None:
    """The mean wait is about half of the M/M/c queue's (Cosmetatos' correction included); of M/D/1 exactly half."""
    offered = load * servers
    mmc = erlang_c(servers, offered) / (servers - offered)
    more = (1 - load) * (servers - 1) * ((4 + 5 * servers) ** 0.5 - 2) / (16 * servers * load)
    expected = 1 + mmc / 2 * (1 + more)
    found = run(queue(offered, Spread(fixed=1000.0), slots=servers, token_ms=1000 / 999, hours=12.0), 2)
    assert seconds_in_system(found) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("seed", [1, 2])
def test_littles_law_holds(seed: int) -> None:
    """Requests in the system are their rate times how long they stay, with faults and queues and all."""
    found = run(small(hours=1.0), seed)
    rate = found.arrived / found.seconds
    assert found.area / found.seconds == pytest.approx(rate * _mean_stay(found), rel=0.02)


def _mean_stay(ran: Ran) -> float:
    return sum(e - a for a, e in zip(ran.record.at, ran.record.ended, strict=True)) / len(ran.record)


@given(
    seed=st.integers(0, 2**31), rate=st.floats(0.05, 3.0), nodes=st.integers(0, 3), replicas=st.integers(0, 2),
    node_hours=st.sampled_from([None, 0.02, 0.2]), partition_hours=st.sampled_from([None, 0.05]), core=st.booleans(),
)  # fmt: skip
@settings(max_examples=20)
def test_every_request_arrives_once_and_ends_once(
    seed: int,
    rate: float,
    nodes: int,
    replicas: int,
    node_hours: float | None,
    partition_hours: float | None,
    core: bool,
) -> None:
    """Whatever breaks: each request has one end, after it began, and nothing is left anywhere."""
    scenario = small(
        hours=0.1, edge=Edge(sites=2, nodes=nodes), core=Core(replicas=replicas, most=2) if core else None,
        faults=Faults(node_hours=node_hours, repair_s=20.0, partition_hours=partition_hours, partition_s=15.0),
        traffic=small().traffic.model_copy(update={"rate": rate}),
    )  # fmt: skip
    found = run(scenario, seed)
    arrivals = sorted(at for block in Arrivals(scenario, seed).blocks() for at in block.at)
    assert sorted(found.record.at) == arrivals
    assert all(end >= at for at, end in zip(found.record.at, found.record.ended, strict=True))
    assert not any(s.busy or s.queue or s.trips for s in found.sites.servers)
    assert not any(any(d.flights.values()) or d.waiting for d in found.sites.doors)


def test_the_same_seed_gives_the_same_bytes() -> None:
    """A run repeats; another seed is another run."""
    first, again, other = (results(run(small(), seed)).model_dump_json() for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_the_warm_up_costs_nothing_and_uses_up_no_requests() -> None:
    """So many requests as were asked for are measured, and a thousand of them cost what they do in a run without one."""
    cold, warm = small(faults=Faults()), small(faults=Faults(), warmup_s=600.0)
    first, second = (results(run(s, 8, requests=600)) for s in (cold, warm))
    assert first.requests == second.requests == 600
    assert second.seconds > first.seconds + 500
    assert second.cost.per_1k_usd == pytest.approx(first.cost.per_1k_usd, rel=0.2)
    assert second.cost.per_1k_wh == pytest.approx(first.cost.per_1k_wh, rel=0.2)
    assert second.cost.replica_hours == pytest.approx(2 * (second.seconds - 600) / 3600, abs=1e-4)
    assert second.series.hours[0] > 600 / 3600


def test_a_run_that_measures_nothing_is_refused() -> None:
    """A warm-up longer than the run is an error with a hint, and no run that kept its objectives."""
    with pytest.raises(CatalogError, match="nothing was measured: no request came after the warm-up of 3600 s") as e:
        results(run(small(warmup_s=3600.0), 1))
    assert "warmup_s" in e.value.hint


def test_another_policy_meets_the_same_requests() -> None:
    """Two policies are compared on common random numbers: the same arrivals, sizes and luck."""
    one, other = run(small(), 3), run(small(policy=Policy(tiny_prompt_tokens=8)), 3)
    assert sorted(one.record.at) == sorted(other.record.at)
    assert one.faults.nodes_lost == other.faults.nodes_lost


def test_a_site_that_is_cut_off_answers_by_itself() -> None:
    """While no site reaches the core, what needs it is answered at the edge, marked as degraded; then not any more."""
    scenario = small(faults=Faults(core_down=[(300.0, 900.0)]), hours=0.5)
    found = run(scenario, 4)
    degraded = [at for at, o in zip(found.record.at, found.record.outcome, strict=True) if o == Outcome.DEGRADED]
    assert degraded
    assert all(295.0 <= at <= 915.0 for at in degraded)
    assert found.faults.partitions == 3


def test_an_endpoint_that_does_not_begin_is_given_up() -> None:
    """A streamed answer begins within first_s of one of the attempts, or the request fails."""
    waiting = queue(0.1, Spread(fixed=41.0), token_ms=1000.0, hours=1.0)
    kind = waiting.traffic.kinds["k"].model_copy(update={"stream": True})
    found = run(waiting.changed(traffic=Traffic(rate=0.1, kinds={"k": kind})), 1)
    begun = [ms for ms, o in zip(found.record.counted_ms, found.record.outcome, strict=True) if o == Outcome.ANSWERED]
    limits, effort = Limits(), Effort()
    assert max(begun) <= effort.attempts * (limits.first_s + 1) * 1000
    assert Outcome.FAILED in found.record.outcome


@pytest.mark.parametrize(
    ("deadline_ms", "limit_ms"),
    [pytest.param(None, 300_000.0, id="answer_s"), pytest.param(20_000.0, 20_000.0, id="deadline")],
)
def test_an_answer_that_takes_too_long_is_cut(deadline_ms: float | None, limit_ms: float) -> None:
    """It ends at its time as a fault, and its server is free for the next."""
    slow = queue(0.001, Spread(fixed=401.0), token_ms=1000.0)
    kind = slow.traffic.kinds["k"].model_copy(update={"deadline_ms": deadline_ms})
    ran = run(slow.changed(traffic=Traffic(rate=0.001, kinds={"k": kind}), policy=Policy(token_ms=1.0, cpu=1.0)), 1)
    found = results(ran)
    cut = [ms for ms, o in zip(ran.record.total_ms, ran.record.outcome, strict=True) if o == Outcome.TIMEOUT]
    assert cut
    assert cut == pytest.approx([limit_ms] * len(cut))
    assert found.outcomes["answered"] == 0
    assert next(o for o in found.objectives if o.name == "availability").missed == found.requests
    assert ran.sites.nodes[0][0].work_s <= len(cut) * limit_ms / 1000 + 1e-6


def test_a_way_that_is_cut_twice_stays_cut_until_both_are_over() -> None:
    """The end of a short cut within a long one does not join a site with its core."""
    found = run(small(faults=Faults(core_down=[(300.0, 900.0), (400.0, 420.0)])), 4)
    degraded = [at for at, o in zip(found.record.at, found.record.outcome, strict=True) if o == Outcome.DEGRADED]
    assert any(430.0 < at < 890.0 for at in degraded)


def test_nodes_that_die_lose_no_request() -> None:
    """With other nodes and a core to go to, a node's loss costs its requests time, and nothing else."""
    found = results(run(small(faults=Faults(node_hours=0.1, repair_s=60.0), hours=1.0), 7))
    assert found.nodes_lost > 20
    assert found.outcomes["failed"] == 0
    assert found.reasons["retry"] + found.reasons.get("continued", 0) > 0


def test_a_cold_start_takes_as_long_as_it_says() -> None:
    """A replica that is asked for takes requests after its cold start, and costs from the moment it was asked for."""
    found = run(small(core=Core(replicas=0, most=1, cold_start_s=100.0), faults=Faults()), 1)
    pool = found.sites.pools[0]
    assert (pool.ready, pool.cold_starts) == (0, 0)
    events = Events()
    again = run(small(core=Core(replicas=1, most=1), faults=Faults()), 1).sites.pools[0]
    assert again.servers[0].on_s == pytest.approx(1800.0)
    assert len(events) == 0


@pytest.mark.parametrize(
    ("name", "pool", "p50", "p95"),
    [
        pytest.param("lab-pi", "edge", (120, 220), (450, 800), id="one Pi 5, 1.3B"),
        pytest.param("lab-cluster", "edge", (90, 180), (300, 500), id="four Pi 5, 1.3B"),
        pytest.param("lab-nvlink", "nvlink", (18, 35), (40, 80), id="four GPUs with NVLink, 13B"),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_labs_table_is_reproduced(
    name: str, pool: str, p50: tuple[int, int], p95: tuple[int, int], seed: int
) -> None:
    """Published speeds, and nothing else, put each row's percentiles into its range."""
    times = results(run(load(name), seed, requests=10000)).times[pool]
    assert times.p50 is not None
    assert times.p95 is not None
    assert p50[0] <= times.p50 <= p50[1]
    assert p95[0] <= times.p95 <= p95[1]


def test_traffic_has_the_rate_it_says() -> None:
    """Requests are as many as the rate, the hours and the bursts say, within five standard deviations."""
    scenario = load("retail")
    arrivals = Arrivals(scenario, 1)
    expected = sum(float(arrivals.rate(at).sum()) * 10 for at in range(0, int(arrivals.until), 10))
    found = sum(len(b.at) for b in Arrivals(scenario, 1).blocks())
    assert abs(found - expected) < 5 * expected**0.5


@pytest.mark.parametrize("name", shipped())
def test_shipped_scenarios_run(name: str) -> None:
    """Each of them loads, runs, and comes to a document that reads back as itself."""
    found = results(run(load(name), 1, requests=300))
    assert Results.model_validate_json(found.model_dump_json()) == found
    assert sum(found.outcomes.values()) == found.requests


def test_every_published_figure_has_its_source() -> None:
    """Whoever adds a figure says where it comes from."""
    for name, found in published().items():
        assert found.model_fields_set - {"machine", "sources"} <= set(found.sources), name
    with pytest.raises(ValueError, match="names no source of slots"):
        Figures(machine="x", token_ms=1.0, slots=2, sources={"token_ms": "y"})


def test_a_core_that_is_down_comes_back_later() -> None:
    """An end before its start is refused."""
    with pytest.raises(ValueError, match="not before its end"):
        Faults(core_down=[(100.0, 200.0), (500.0, 100.0)])


def test_an_unknown_scenario_is_refused_with_those_there_are() -> None:
    """The error names what can be asked for."""
    with pytest.raises(CatalogError) as e:
        load("nowhere")
    assert "lab-pi" in e.value.hint


@given(st.lists(st.floats(0, 1e6), max_size=40), st.floats(0.1, 1e5))
def test_events_happen_in_their_order(times: list[float], until: float) -> None:
    """Whatever is planned happens in the order of its time, and none after the end of a run."""
    events, seen = Events(), list[float]()
    for at in times:
        events.at(at, seen.append, at)
    events.run(until)
    assert seen == sorted(at for at in times if at <= until)
    events.drain()
    assert seen == sorted(times)


@given(st.lists(st.floats(0, 1000), max_size=30).map(sorted), st.floats(1, 100))
def test_the_most_in_a_window(times: list[float], window: float) -> None:
    """As counting at every start does."""
    assert most_within(times, window) == max(
        (sum(a <= t < a + window or t == a for t in times) for a in times), default=0
    )


def test_replicas_that_swing_are_counted() -> None:
    """Down soon after up is a flip; down later, or up after up, is none."""
    assert flips([(0.0, 1, 2), (100.0, 2, 1), (1000.0, 1, 2), (1100.0, 2, 4)], 300.0) == 1
    assert flips([], inf) == 0


def _line(at: float | None, **changes: Any) -> str:
    fields = {"request": "r", "kind": "chat", "prompt_tokens": 9, "generated": 4, "stream": True, "reason": "affinity"}
    return json.dumps({k: v for k, v in {**fields, "at": at, **changes}.items() if v is not None})


def test_a_journal_is_replayed() -> None:
    """The requests of a gateway's journal come again when they came, with their tokens, as what they were."""
    lines = [
        _line(1000.5), _line(1002.0, reason="sensitive"), _line(1001.0, reason="long_generation", generated=300),
        _line(1003.0, prompt_tokens=0, generated=0), _line(1004.0, stream=False),
    ]  # fmt: skip
    found = replay(load("lab"), [lines], 1)
    assert found.block.at == [0.0, 0.5, 1.5, 3.5]
    assert list(found.scenario.traffic.kinds) == ["long", "plain", "plain, whole", "sensitive"]
    ran = run(found.scenario, 1, blocks=[found.block])
    shown = results(ran)
    assert shown.requests == 4
    assert (shown.reasons["sensitive"], shown.reasons["long_generation"]) == (1, 1)


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([_line(None)], id="no time"), pytest.param([_line(1.78e19)], id="nanoseconds"),
        pytest.param(["{"], id="no JSON"), pytest.param([], id="none"),
    ],
)  # fmt: skip
def test_what_is_no_journal_is_refused(lines: list[str]) -> None:
    """The error says which line, and what a journal is."""
    with pytest.raises(CatalogError):
        replay(load("lab"), [lines], 1)


def test_one_request_is_replayed_within_a_second() -> None:
    """Its rate is that of a second, and the days before, which no journal tells of, are not drawn."""
    found = replay(load("bursts"), [[_line(1000.5)]], 1)
    assert past(found.scenario, 1) == []
    assert results(run(found.scenario, 1, blocks=[found.block])).seconds == 1.0


@pytest.mark.parametrize("reason", ["retry", "hedge", "continued", "degraded"])
def test_a_journal_does_not_say_what_such_a_request_was(reason: str) -> None:
    """It is replayed as a plain one."""
    assert list(replay(load("lab"), [[_line(1000.5, reason=reason)]], 1).scenario.traffic.kinds) == ["plain"]


def test_hours_are_those_of_utc() -> None:
    """A start at 8:00 of Tokyo is 23:00 UTC, for the traffic and on the page."""
    traffic = small().traffic.model_copy(update={"hourly": [*[1.0] * 23, 9.0]})
    starts = datetime(2026, 11, 2, 8, tzinfo=timezone(timedelta(hours=9))), datetime(2026, 11, 1, 23, tzinfo=UTC)
    there, here = (small(start=start, traffic=traffic) for start in starts)
    assert Arrivals(there, 1).rate(0.0).sum() == Arrivals(here, 1).rate(0.0).sum() > 3 * small().traffic.rate
    assert "from 2026-11-01 23:00 UTC" in html(results(run(there, 1, requests=50)), there)


def test_evidence_becomes_service_times() -> None:
    """What a check measured is what the simulated server takes, and is named as its source."""
    variant = next(v for v in VARIANTS if v.name == "tiny-edge-arm64")
    found = measured(measurement(variant, token_ms=3.0), PARAMS.costs[RunnerClass.HOST], published()["pi5"])
    assert (found.prompt_ms, found.token_ms, found.prompt_token_ms, found.spread) == (3.0, 3.0, 0.0, 0.0)
    assert found.sources["token_ms"] == "measured: tiny-edge-arm64 on host"


def test_the_page_is_whole_and_the_same_each_time() -> None:
    """The page shows what the document says, with every figure's source, and asks for nothing beyond itself."""
    scenario = load("lab")
    found = results(run(scenario, 1, requests=2000))
    first = html(found, scenario)
    assert first == html(found, scenario)
    assert "github.com/ggml-org/llama.cpp/pull/6928" in first
    assert first.count("<svg") == 7
    assert "<script" not in first
    assert "http-equiv" in first


def test_the_command_prints_tables_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`edge-release simulate` says which objectives were kept; --json prints the document."""
    assert cli.main(["simulate", "--scenario", "lab-pi", "--requests", "500"]) == 0
    assert "edge_p95" in capsys.readouterr().out
    assert cli.main(["simulate", "--scenario", "lab-pi", "--requests", "500", "--json"]) == 0
    assert Results.model_validate_json(capsys.readouterr().out).requests == 500
    assert cli.main(["simulate", "--scenario", "nowhere"]) == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        pytest.param(["--hours", "nan"], "--hours", id="hours are no number"),
        pytest.param(["--hours", "inf"], "--hours", id="hours without end"),
        pytest.param(["--seed", "-1"], "--seed", id="a seed below 0"),
        pytest.param(["--replay", "journal", "--requests", "9"], "--replay", id="fewer requests than were"),
        pytest.param(["--replay", "journal", "--hours", "1"], "--replay", id="other hours than were"),
    ],
)
def test_nonsense_is_refused_in_one_line(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the flag, and a hint follows."""
    assert cli.main(["simulate", "--scenario", "lab-pi", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"edge-release: error: {told}")
    assert "hint: " in said


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        pytest.param("nodes: 1", "nodes: 1, variant: my-model", "no variant 'my-model'", id="no such variant"),
        pytest.param("rate: 0.2", "rate: 1.0e+300", "traffic.rate", id="more than can be drawn"),
        pytest.param(
            "traffic:", "core: {replicas: 3, most: 1}\ntraffic:", "replicas are more", id="replicas beyond most"
        ),
        pytest.param("traffic:", "core: {least: 1}\ntraffic:", "core.least", id="a key that nothing reads"),
        pytest.param("2026-11", "0001-11", "between 1900 and 2100", id="long ago"),
        pytest.param("traffic:", "faults: {core_down: [[5, 1]]}\ntraffic:", "core_down", id="up before it is down"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused(
    old: str, new: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the key."""
    text = (resources.files("pipeline.lab.simulation") / "scenarios/lab-pi.yaml").read_text()
    assert old in text
    path = tmp_path / "scenario.yaml"
    path.write_text(text.replace(old, new))
    assert cli.main(["simulate", "--scenario", str(path)]) == 2
    assert told in capsys.readouterr().err


def test_the_journal_of_a_gateway_is_one(tmp_path: Path) -> None:
    """What a running gateway writes of its requests can be replayed."""

    async def asked() -> list[str]:
        async with running(tmp_path, edge={"pi": says("hello")}, nvlink={"gpu": says("large")}) as at:
            for fields in ({}, {"stream": True}, {"max_tokens": 900}):
                await at.ask(chat(**fields))
            return [json.dumps(line) for line in at.lines]

    found = replay(load("lab"), [asyncio.run(asked())], 1)
    assert len(found.block.at) == 3
    assert "long, whole" in found.scenario.traffic.kinds


def test_batch_waits_behind_interactive_requests() -> None:
    """Of requests that wait at a gateway before full queues, more of the interactive ones are answered in time."""
    kinds = {
        name: Kind(share=1.0, prompt=Spread(fixed=1.0), answer=Spread(fixed=400.0), priority=priority)
        for name, priority in (("batch", Priority.BATCH), ("interactive", Priority.INTERACTIVE))
    }
    scenario = queue(4.0, Spread(fixed=1.0), hours=0.1).changed(
        policy=Policy(queue_depth=0.0, cpu=1.0, batch_share=1.0), traffic=Traffic(rate=4.0, kinds=kinds)
    )
    found = results(run(scenario, 1))
    assert found.refusals["overloaded"] > 100
    assert found.kinds["interactive"].count > 1.5 * found.kinds["batch"].count


def test_foresight_keeps_promises_that_reacting_misses() -> None:
    """Warmed before the bursts of earlier days come again, a pool misses a third at most, at no more than 1.1x."""
    scenario = load("bursts").changed(hours=1.0, history_days=2.0)
    assert len(past(scenario, 1)) == 1
    assert past(scenario.unforeseeing(), 1) == []
    reacts, foresees = (results(run(s, 1)) for s in (scenario.unforeseeing(), scenario))
    late = [sum(o.missed for o in r.objectives if o.name in {"global_p95", "availability"}) for r in (reacts, foresees)]
    assert late[1] * 3 <= late[0]
    assert foresees.cost.nvlink_usd <= 1.1 * reacts.cost.nvlink_usd
    assert any(reason.startswith("pre_warm") for reason in foresees.control.reasons)
    assert max(r.control.policies_most_in_pause for r in (reacts, foresees)) <= 1
