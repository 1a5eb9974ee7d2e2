"""The controller's parts around its decisions: figures, answers of a Prometheus, a cluster's objects, the log."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given

from pipeline.control import cluster, promql
from pipeline.control.controller import Controller, Parts
from pipeline.control.decide import decide
from pipeline.control.fetch import Fetch, Said
from pipeline.control.gateways import Gateways
from pipeline.control.history import History
from pipeline.control.lead import Alone
from pipeline.control.log import Log, Round, read, replay
from pipeline.control.memory import Memory
from pipeline.control.metrics import Metrics
from pipeline.control.samples import Rates, parse, value
from pipeline.control.scheduler.nodes import GPU
from pipeline.control.scrape import Member, Seen, core, missed, node, policy_of, qps, server, told, wait_ms
from pipeline.control.settings import Acting, Eviction, GatewayEntry, Looking, PoolSettings, Settings, parse_settings
from pipeline.control.state import Host
from pipeline.errors import CatalogError, StageError
from pipeline.peers.policy import Policy
from pipeline.peers.status import Pool, ServerStatus, State
from pipeline.ports.nvml import Use
from pipeline.serving.node import metrics as figures
from pipeline.serving.node.state import NodeState
from tests.support.controlled import SETTINGS, nodes, state
from tests.unit.test_control_decide import STATES

LARGE = Member("gpu-1", "http://gpu-1", Pool.NVLINK, State.READY, True, "large-x86_64", 12.0, 8, 3, 0)
STATUS = ServerStatus(name="gpu-1", pool=Pool.NVLINK, state=State.READY, slots=8, busy=3)
PI = Member("pi-1", "http://pi-1", Pool.EDGE, State.READY, True, "tiny-edge-arm64", 1.0, 4, 4, 2, 0.5)


def test_rates_are_of_two_looks_half_the_time_apart() -> None:
    """One look, or two at once, is no rate; a counter that fell began anew; a new label counts from zero."""
    rates = Rates(60.0)
    assert rates.by("a_total", "v") is None
    rates.look(0.0, parse('a_total{v="x"} 100\n'))
    rates.look(20.0, parse('a_total{v="x"} 130\n'))
    assert rates.by("a_total", "v") is None
    rates.look(40.0, parse('a_total{v="x"} 140\na_total{v="y"} 4\n'))
    assert rates.by("a_total", "v") == {"x": 1.0, "y": 0.1}
    rates.look(80.0, parse('a_total{v="x"} 6\na_total{v="y"} 4\n'))
    assert rates.by("a_total", "v") == {"x": pytest.approx(0.1), "y": pytest.approx(4 / 60)}
    assert rates.total("b_total") == 0.0


def test_what_is_no_finite_number_is_unknown() -> None:
    """Neither a count that is none nor one without end gets into a decision."""
    found = parse("a NaN\nb +Inf\nc 1\n")
    assert [value(found, name) for name in "abc"] == [None, None, 1.0]
    said = Said(200, b'{"endpoints": [{"name": "x", "round_trip_ms": NaN}]}')
    assert said.json() is None


def test_old_looks_are_forgotten() -> None:
    """A rate is of the last minute, not of an hour."""
    rates = Rates(60.0)
    for at in range(0, 3601, 15):
        rates.look(float(at), parse(f"a_total {max(at - 3540, 0)}\n"))
    assert rates.total("a_total") == pytest.approx(1.0)


def test_what_gateways_count_becomes_demand() -> None:
    """Requests by variant; degraded ones and those refused for want of a core were meant for the NVLink pool."""
    rates = Rates(10.0)
    for at in (0.0, 10.0):
        rates.look(
            at,
            parse(
                f'gateway_variant_total{{variant="large-x86_64"}} {at * 2}\n'
                f'gateway_route_total{{pool="edge",reason="degraded"}} {at}\n'
                f'gateway_route_total{{pool="edge",reason="tiny_edge"}} {at * 9}\n'
                f'gateway_refused_total{{code="core_down"}} {at * 3}\n'
                f'gateway_refused_total{{code="timeout"}} {at * 9}\n'
            ),
        )
    assert qps(rates) == {"large-x86_64": 2.0}
    assert missed(rates) == 4.0


def test_a_server_is_what_it_says_or_else_what_a_gateway_says() -> None:
    """Without its own figures its load is a gateway's; unequal links are not whole ones; a figure twice is none."""
    pool = SETTINGS.pools[0]
    assert (server(LARGE, pool, None).running, server(LARGE, pool, None).nvlink) == (3, None)
    said = parse(
        "edge_node_slots 8\nedge_node_slots_busy 8\nedge_node_queue_length 3\n"
        'edge_node_nvlink_active{gpu="0"} 18\nedge_node_nvlink_active{gpu="1"} 17\n'
    )
    found = server(LARGE, pool, said)
    assert (found.running, found.waiting, found.queue_wait_ms, found.nvlink) == (8, 3, 500.0, False)
    assert value(parse('a{b="1"} 1\na{b="2"} 2\n'), "a") is None
    assert node(PI, "s", Policy()).queue_wait_ms == wait_ms(6, 4, 500.0) == 375.0
    assert node(replace(PI, usable=False), "s", Policy()).ready is False
    assert core([LARGE, PI, replace(LARGE, usable=False, round_trip_ms=1.0)]) == {
        "core_usable": 1,
        "core_round_trip_ms": 12.0,
    }
    assert core(None) == {}


@pytest.mark.parametrize(
    "document", [None, {}, [], "x", {"objectives": 3, "pools": []}, {"objectives": [], "pools": []}]
)
def test_a_status_that_is_none_is_unknown(document: Any) -> None:
    """Whatever a gateway answers, nothing is made up."""
    assert told(document, Looking()) == {}
    assert policy_of(document) == (Policy() if document == {} else None)


def test_the_burn_of_few_requests_is_unknown() -> None:
    """Two late answers of ten are chance; an objective that enough was asked of is told."""
    objectives = [
        {"objective": "edge_p95", "asked_5m": 10, "burn_5m": 4.0}, {"objective": "edge_p50", "asked_5m": 0, "burn_5m": None},
        {"objective": "global_p95", "asked_5m": 50, "burn_5m": 0.4},
    ]  # fmt: skip
    status = {"objectives": objectives, "pools": [{"pool": "edge", "p50_ms": 20.0, "p95_ms": 90.0}]}
    assert told(status, Looking()) == {"burn": {"global_p95": 0.4}, "edge_p50_ms": 20.0, "edge_p95_ms": 90.0}
    assert told(status, Looking(burn_requests=10))["burn"] == {"edge_p95": 4.0, "global_p95": 0.4}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param({"status": "success", "data": {"resultType": "vector", "result": [
            {"metric": {"instance": "a"}, "value": [1, "2.5"]}, {"metric": {"instance": "b"}, "value": [1, "NaN"]}]}},
            [({"instance": "a"}, 2.5)], id="numbers alone"),
        pytest.param({"status": "error", "error": "x"}, None, id="an error"),
        pytest.param({"status": "success", "data": {"resultType": "matrix", "result": []}}, None, id="another type"),
        pytest.param({"status": "success", "data": {"resultType": "vector", "result": [{"value": []}]}}, None, id="torn"),
        pytest.param(None, None, id="nothing"),
    ],
)  # fmt: skip
def test_a_vector_is_numbers_or_unknown(document: Any, expected: Any) -> None:
    """What is no vector is unknown, what is no number is absent."""
    assert promql.vector(document) == expected


def test_prometheus_tells_of_nodes_and_large_servers() -> None:
    """A node that is not scraped is not ready, a figure that is missing is unknown."""
    known = {
        "up": [({"job": "node", "instance": "a", "site": "s"}, 1.0), ({"job": "node", "instance": "b"}, 0.0),
               ({"job": "large", "instance": "c"}, 1.0)],
        "ready": [({"instance": "a"}, 1.0), ({"instance": "c"}, 1.0)],
        "cpu": [({"instance": "a"}, 0.25)],
        "slots": [({"instance": "c"}, 4.0)],
        "busy": [({"instance": "c"}, 4.0)],
        "queued": [({"instance": "c"}, 1.0)],
        "nvlink": [({"instance": "c"}, 0.0)],
    }  # fmt: skip
    first, second = promql.nodes(known, SETTINGS)
    assert (first.ready, first.cpu, first.site, first.queue_wait_ms) == (True, 0.25, "s", None)
    assert (second.ready, second.cpu) == (False, None)
    (found,) = promql.servers(known, SETTINGS.pools)
    assert (found.pool, found.running, found.waiting, found.queue_wait_ms, found.nvlink) == (
        "large",
        4,
        1,
        500.0,
        False,
    )


def test_every_address_of_a_name_is_a_gateway() -> None:
    """They are looked up anew each time, keep the shared name's certificate, and stay when the name server is gone."""
    known = {"gw.svc": ["10.0.0.2", "10.0.0.1"]}

    async def resolve(host: str, port: int) -> list[str]:
        if host not in known:
            raise OSError("no such name")
        return known[host]

    async def scenario() -> None:
        entries = [
            GatewayEntry(name="gw", url="https://gw.svc:8089", site="s", every=True, tls_name="gateway.svc"),
            GatewayEntry(name="lone", url="https://lone:8089"),
        ]
        found = Gateways(entries, resolve)
        first = await found.entries()
        assert [(e.name, e.url, e.tls_name, e.site) for e in first] == [
            ("gw-10.0.0.1", "https://10.0.0.1:8089", "gateway.svc", "s"),
            ("gw-10.0.0.2", "https://10.0.0.2:8089", "gateway.svc", "s"),
            ("lone", "https://lone:8089", None, ""),
        ]
        known["gw.svc"] = ["10.0.0.3"]
        assert [e.name for e in await found.entries()] == ["gw-10.0.0.3", "lone"]
        assert found.named("gw-10.0.0.1") is None
        known.clear()
        assert [e.name for e in await found.entries()] == ["gw-10.0.0.3", "lone"]

    asyncio.run(scenario())


def pod(name: str, node_: str = "nv-1", gpus: int = 2, namespace: str = "jobs", **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": name, "labels": labels},
        "spec": {
            "nodeName": node_,
            "priority": -3,
            "containers": [{"resources": {"limits": {GPU: str(gpus)}}}],
        },
    }


def test_gpus_that_somebody_asked_for_are_taken() -> None:
    """Pods of every namespace count; a cordoned machine is no place; without pods nothing is known to be free."""
    machine = {"metadata": {"name": "nv-1"}, "spec": {}, "status": {"allocatable": {GPU: "8"}}}
    cordoned = {**machine, "metadata": {"name": "nv-2"}, "spec": {"unschedulable": True}}
    plain = {"metadata": {"name": "pi-1"}, "spec": {}, "status": {"allocatable": {"cpu": "4"}}}
    found = cluster.hosts([machine, cordoned, plain], [pod("a"), pod("b", namespace="other"), pod("c", "nv-2")], {})
    assert found == (Host("nv-1", 8, 4),)
    assert cluster.hosts([machine], None, {}) == (Host("nv-1", 8, None),)


READY = {"conditions": [{"type": "Ready", "status": "True"}]}
PLACE = {"metadata": {"labels": {"gpu": "nvlink"}}, "spec": {}, "status": READY}
TAINT = {"key": "gpu", "value": "nvlink", "effect": "NoSchedule"}
TAINTED = {**PLACE, "spec": {"taints": [TAINT]}}


def tolerates(**toleration: str) -> dict[str, Any]:
    return {"tolerations": [toleration]}


def meant(*expressions: dict[str, Any]) -> dict[str, Any]:
    terms = {"nodeSelectorTerms": [{"matchExpressions": list(expressions)}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}


@pytest.mark.parametrize(
    ("place", "spec", "taken"),
    [
        pytest.param(PLACE, {}, True, id="no condition"),
        pytest.param(PLACE, {"nodeSelector": {"gpu": "nvlink"}}, True, id="its label"),
        pytest.param(PLACE, {"nodeSelector": {"gpu": "other"}}, False, id="another label"),
        pytest.param({**PLACE, "status": {}}, {}, False, id="not known to be ready"),
        pytest.param(TAINTED, {}, False, id="taint"),
        pytest.param(TAINTED, tolerates(key="gpu", value="nvlink"), True, id="tolerated by value"),
        pytest.param(TAINTED, tolerates(key="gpu", value="other"), False, id="another value"),
        pytest.param(TAINTED, tolerates(operator="Exists"), True, id="tolerates all"),
        pytest.param(TAINTED, tolerates(key="gpu", operator="Exists", effect="NoExecute"), False, id="another effect"),
        pytest.param({**PLACE, "spec": {"taints": [{**TAINT, "effect": "PreferNoSchedule"}]}}, {}, True, id="a preference"),
        pytest.param(PLACE, meant({"key": "gpu", "operator": "In", "values": ["nvlink"]}), True, id="affinity"),
        pytest.param(PLACE, meant({"key": "gpu", "operator": "NotIn", "values": ["nvlink"]}), False, id="another affinity"),
        pytest.param(PLACE, meant({"key": "gpus", "operator": "Gt", "values": ["3"]}), False, id="not understood"),
        pytest.param(PLACE, meant(), False, id="no term"),
    ],
)  # fmt: skip
def test_a_host_takes_pods_by_its_labels_and_taints(place: dict[str, Any], spec: dict[str, Any], taken: bool) -> None:
    """As kube-scheduler decides it, and none where that cannot be told."""
    assert cluster.takes(place, spec) is taken
    machine = {**place, "metadata": {**place["metadata"], "name": "nv-1"}}
    machine["status"] = {**place["status"], "allocatable": {GPU: "4"}}
    (found,) = cluster.hosts([machine], [], {"large": spec})
    assert found.pools == (("large",) if taken else ())


@pytest.mark.parametrize(
    ("selector", "covers"),
    [
        pytest.param({"matchLabels": {"app": "x"}}, True, id="equal"),
        pytest.param({"matchLabels": {"app": "y"}}, False, id="unequal"),
        pytest.param({}, True, id="empty is everybody"),
        pytest.param({"matchExpressions": [{"key": "app", "operator": "In", "values": ["x", "y"]}]}, True, id="in"),
        pytest.param({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}, False, id="not in"),
        pytest.param({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}, False, id="exists"),
        pytest.param({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, True, id="does not exist"),
        pytest.param({"matchExpressions": [{"key": "tier", "operator": "Newer"}]}, True, id="not understood"),
    ],
)
def test_budgets_cover_what_their_selectors_say(selector: dict[str, Any], covers: bool) -> None:
    """What is not understood covers, and a budget of another namespace does not."""
    budget = {"metadata": {"name": "b", "namespace": "jobs"}, "spec": {"selector": selector}}
    assert cluster.covers(budget, pod("a", app="x")) is covers
    assert not cluster.covers(budget, pod("a", namespace="other", app="x"))
    found = cluster.pod(pod("a", app="x", **{"edge-release.dev/yields": "true"}), [budget], Eviction())
    assert (found.batch, found.priority, found.gpus, found.budgets) == (True, -3, 2, ("jobs/b",) if covers else ())


def written(path: Path, rounds: int, rules: Settings = SETTINGS) -> None:
    log, memory = Log(path, rules), Memory()
    for i in range(rounds):
        what = state(nodes=nodes(4, 0))
        actions, after = decide(what, memory, rules, i * 60.0)
        log.write(Round(i * 60.0, True, what, memory, actions))
        memory = after
    log.close()


def test_a_log_is_replayed_to_the_same_decisions(tmp_path: Path) -> None:
    """Every round comes out the same; one that was changed, or other settings, are found by their line."""
    log = tmp_path / "decisions.jsonl"
    written(log, 6)
    found = list(replay(log))
    assert [f.same for f in found] == [True] * 6
    assert any(f.decided for f in found)
    lines = log.read_text().splitlines()
    acted = next(i for i, line in enumerate(lines[1:], 1) if json.loads(line)["actions"])
    changed = json.loads(lines[acted])
    changed["actions"] = []
    log.write_text("\n".join([*lines[:acted], json.dumps(changed), *lines[acted + 1 :]]))
    assert [f.line for f in replay(log) if not f.same] == [acted + 1]
    head = json.loads(lines[0])
    head["settings"]["routing"]["pause_s"] = 86400.0
    log.write_text("\n".join([json.dumps(head), *lines[1:]]))
    assert not all(f.same for f in replay(log))


def test_a_torn_line_is_what_a_crash_leaves(tmp_path: Path) -> None:
    """The last line may be half a line, and a new controller goes on behind it; anything else is an error."""
    log = tmp_path / "decisions.jsonl"
    written(log, 2)
    log.write_bytes(log.read_bytes()[:-40])
    assert len(list(read(log))) == 1
    written(log, 2)
    assert len(list(read(log))) == 3
    log.write_text(log.read_text().replace('"now":0.0', '"now":', 1))
    with pytest.raises(CatalogError, match="no line of a decision log"):
        list(read(log))
    for text in ("", '{"now": 1}\n'):
        log.write_text(text)
        with pytest.raises(CatalogError):
            list(read(log))
    with pytest.raises(CatalogError):
        list(read(tmp_path / "missing"))


def test_a_full_disk_is_told_of_and_written_to_again() -> None:
    """What could not be written down ends the round, not the controller."""
    log = Log(Path("/dev/full"), SETTINGS)
    for _ in range(2):
        with pytest.raises(StageError, match="No space left"):
            log.write(Round(0.0, True, state(), Memory(), ()))
    log.close()


def test_an_odd_answer_ends_a_round_and_nothing_else(tmp_path: Path) -> None:
    """Whatever goes wrong in looking is told of, and the next round begins anew."""

    async def look() -> Seen:
        raise AttributeError("odd")

    said: list[str] = []
    fetch, gateways = Fetch(cast("Any", None), SETTINGS.looking), Gateways([], cast("Any", None))
    controller = Controller(Parts(SETTINGS, look, fetch, gateways, Alone(), tmp_path, said.append))
    assert asyncio.run(controller.once()) == []
    assert (controller.rounds, said) == (1, ["nothing was done: AttributeError: odd"])


def test_a_clock_that_was_far_ahead_costs_the_history_only() -> None:
    """Once it is right again the history begins anew instead of waiting for that time."""
    history = History(SETTINGS)
    assert history.add(1e9 + 400 * 86400, {"large": 1.0}) is False
    assert history.add(1e9, {"large": 1.0}) is False
    assert history.add(1e9 + SETTINGS.forecast.step_s, {"large": 1.0}) is True


def test_logs_are_put_aside_and_only_some_are_kept(tmp_path: Path) -> None:
    """What is kept stays below its bound, and every file can be replayed by itself."""
    rules = SETTINGS.model_copy(update={"acting": Acting(log_bytes=1 << 16, logs=2)})
    written(tmp_path / "decisions.jsonl", 200, rules)
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == ["decisions.jsonl", "decisions.jsonl.1", "decisions.jsonl.2"]
    assert all(p.stat().st_size < (1 << 16) + 8192 for p in tmp_path.iterdir())
    assert all(f.same for p in tmp_path.iterdir() for f in replay(p))


@given(STATES)
def test_every_state_survives_the_log(tmp_path_factory: pytest.TempPathFactory, what: Any) -> None:
    """What is written is read again, figure by figure."""
    log = tmp_path_factory.mktemp("log") / "decisions.jsonl"
    actions, after = decide(what, Memory(), SETTINGS, 1.5)
    writer = Log(log, SETTINGS)
    writer.write(Round(1.5, True, what, Memory(), actions))
    writer.write(Round(1.5, True, what, after, actions))
    writer.close()
    assert [found for _, _, found in read(log)] == [Round(1.5, True, what, m, actions) for m in (Memory(), after)]


def test_a_follower_tells_of_no_replicas() -> None:
    """One figure stands for a pool: the leader's."""
    metrics, what = Metrics(), state()
    _, memory = decide(what, Memory(), SETTINGS, 0.0)
    metrics.leads(what, memory, [], 0)
    assert b'edge_controller_desired_replicas{pool="large"} 1.0' in metrics.text()
    metrics.follows(3)
    assert b"edge_controller_desired_replicas{" not in metrics.text()
    assert b"edge_controller_leader 0.0" in metrics.text()


def test_settings_name_gateways_by_addresses() -> None:
    """An address is a scheme, a host and a port, without a path or a user; names stand once."""
    text = "gateways: [{name: a, url: 'https://gw:8089', site: s}]\npools: [{name: nvlink}]"
    assert parse_settings(text, "c").gateways == [GatewayEntry(name="a", url="https://gw:8089", site="s")]
    for url in ("gw:8089", "https://gw:8089/admin", "https://me@gw:8089"):
        with pytest.raises(CatalogError):
            parse_settings(f"gateways: [{{name: a, url: '{url}'}}]", "c")
    with pytest.raises(CatalogError, match="two gateways"):
        parse_settings("gateways: [{name: a, url: 'http://a'}, {name: a, url: 'http://b'}]", "c")
    assert PoolSettings(name="nvlink").workload == "large"


def test_gpus_of_a_large_server_become_its_health() -> None:
    """What a server's figures say of its GPUs is what the controller sees: whole links, free memory, fragmentation."""
    told_ = figures.text(NodeState(), STATUS, None, [Use(0, 6 << 30, 80 << 30, 18), Use(1, 2 << 30, 80 << 30, 18)])
    found = server(LARGE, SETTINGS.pools[0], parse(told_.decode()))
    assert (found.nvlink, found.gpu_free_bytes, found.fragmentation) == (True, (6 << 30, 2 << 30), 0.25)
    uneven = figures.text(NodeState(), STATUS, None, [Use(0, None, None, 18), Use(1, None, None, 17)])
    assert server(LARGE, SETTINGS.pools[0], parse(uneven.decode())).nvlink is False
    lone = figures.text(NodeState(), STATUS, None, [Use(0, 1, 2, 0)])
    assert server(LARGE, SETTINGS.pools[0], parse(lone.decode())).nvlink is None
