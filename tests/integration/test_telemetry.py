"""The rules and dashboards before a real Prometheus that scrapes a real gateway and a real node while they serve.

The controller's figures are its own, of a state that is made up here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from pipeline.control.act import Did, Outcome
from pipeline.control.actions import Reason, Scale
from pipeline.control.memory import Memory, Mode, Sizing, Steering
from pipeline.control.metrics import Metrics
from pipeline.control.state import Expected, State
from pipeline.peers.slo import OBJECTIVES
from pipeline.peers.status import Pool
from pipeline.serving.node import metrics
from pipeline.serving.node.state import NodeState
from tests.support import built, served
from tests.support import prometheus as support
from tests.support.llama_server import await_http, free_port
from tests.support.nodes import PATIENCE, ROOT, NodeProcess
from tests.support.prometheus import MANIFESTS, RULES, Prometheus, families, names, rules, shown

pytestmark = [pytest.mark.prometheus, pytest.mark.skipif(bool(support.missing()), reason=support.missing())]

# What a machine without a sensor cannot say.
MAY_BE_EMPTY = {"edge_node_temperature_celsius"}


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_rules_and_configuration() -> None:
    """The example's configuration leads to the rules, and all of it is as Prometheus wants it."""
    promtool("check", "config", MANIFESTS / "prometheus.yml")
    promtool("check", "rules", *RULES)


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("tests/*.yml")), ids=lambda p: p.stem)
def test_alerts_fire_when_they_must_and_only_then(path: Path) -> None:
    """promtool's unit tests of the rules."""
    promtool("test", "rules", path)


@dataclass
class Fleet:
    """A node, a large server that answers at once, the gateway before both, and who watches them."""

    node: NodeProcess
    large: subprocess.Popen[bytes]
    gateway: int
    controller: Metrics
    watcher: Prometheus

    def ask(self, path: str = "/v1/chat/completions", **fields: object) -> None:
        """Send a request whose outcome does not matter here."""
        usual: dict[str, object] = {"model": "auto", "max_tokens": 4, "temperature": 0}
        if path == "/generate":
            usual = {"prompt": "where is the black tea?", "max_tokens": 4}
        elif path == "/v1/chat/completions":
            usual["messages"] = [{"role": "user", "content": "where is the black tea?"}]
        body = json.dumps({**usual, **fields}).encode()
        with suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{self.gateway}{path}", body).read()

    def exposed(self) -> set[str]:
        """Return every name that gateway, node and controller may expose, on machines with sensors too."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.gateway}/metrics") as answer:
            found = families(answer.read().decode())
        warm = self.node.status().model_copy(update={"temperature_c": 50.0})
        sensed = metrics.text(NodeState(), warm, None)
        said = self.node.ask("GET", "/metrics")[1] + sensed + self.controller.text()
        return found | families(said.decode())

    def until(self, holds: Callable[[], bool], doing: Callable[[], None]) -> None:
        """Go on doing something until something holds."""
        end = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < end, "it does not come"
            doing()
            time.sleep(0.2)


def _start(root: Path, node: NodeProcess, processes: list[subprocess.Popen[bytes]]) -> int:
    """Start the large server, which says that it serves the node's variant, and the gateway; return its port."""
    large, gateway = free_port(), free_port()
    said = node.status().model_copy(update={"pool": Pool.NVLINK, "slots": 8, "context": 256})
    argv = [sys.executable, "-m", "tests.bench.static_server", str(large), said.encode().decode()]
    processes.append(subprocess.Popen(argv, cwd=ROOT))
    await_http(f"http://127.0.0.1:{large}/status", processes[-1])
    config = root / "gateway.yaml"
    endpoints = [
        {"name": "pi-1", "url": f"http://127.0.0.1:{node.port}", "pool": "edge"},
        {"name": "gpu-1", "url": f"http://127.0.0.1:{large}", "pool": "nvlink"},
    ]
    config.write_text(yaml.safe_dump({"endpoints": endpoints, "poll_s": 0.2}))
    argv = [
        sys.executable, "-c", "import sys; from pipeline.cli import main; sys.exit(main())", "gateway", "--quiet",
        "--config", str(config), "--registry", str(node.shop.registry), "--trust", str(node.shop.trust),
        "--state", str(root / "gateway.json"), "--port", str(gateway),
    ]  # fmt: skip
    processes.append(subprocess.Popen(argv, cwd=root, env={**os.environ, "PYTHONPATH": str(ROOT)}))
    await_http(f"http://127.0.0.1:{gateway}/readyz", processes[-1], PATIENCE)
    return gateway


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet that served every kind of request, saw a large server die, and went on without it."""
    if reason := built.missing():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("fleet")
    shop = served.shop(root / "shop")
    shop.publish(1, served.make(root / "one", 0))
    node, processes = NodeProcess(shop, root / "node"), list[subprocess.Popen[bytes]]()
    try:
        node.start().until_serving(1)
        gateway = _start(root, node, processes)
        controller = Metrics()
        with _controlled(controller) as port:
            targets = {
                "gateway": [f"127.0.0.1:{gateway}"], "node": [f"127.0.0.1:{node.port}"],
                "controller": [f"127.0.0.1:{port}"],
            }  # fmt: skip
            with support.prometheus(root, targets) as watcher:
                found = Fleet(node, processes[0], gateway, controller, watcher)
                _serve(found)
                yield found
    finally:
        for process in processes:
            process.kill()
            process.wait()
        node.stop()


@contextmanager
def _controlled(controller: Metrics) -> Iterator[int]:
    """Tell a controller's figures, a round for each look at them, and yield the port."""
    state = State(0.0, expected=(Expected("nvlink", 4.0, 60.0),))
    memory = Memory({"shop": Steering(Mode.OFFLOAD, 0.0)}, {"nvlink": Sizing(2)}, None)
    scaled = Scale("nvlink", 2, 1, Reason.DEMAND)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with controller.look.time(), controller.decision.time():
                controller.leads(state, memory, [Did(scaled, Outcome.DONE), Did(scaled, Outcome.FAILED)], 1)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(controller.text())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _serve(fleet: Fleet) -> None:
    def everything() -> None:
        for path in ("/v1/chat/completions", "/v1/completions", "/generate"):
            fleet.ask(path, **({"prompt": "tea"} if path == "/v1/completions" else {}))
        fleet.ask(stream=True)
        fleet.ask(model="large", stream=True)
        fleet.ask(model="gpt-4")

    fleet.until(lambda: bool(fleet.watcher.values('gateway_route_total{pool="nvlink"}')), everything)
    body = {"model": "large", "stream": True, "messages": [{"role": "user", "content": "tea"}], "max_tokens": 64}
    request = urllib.request.Request(f"http://127.0.0.1:{fleet.gateway}/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        answer.readline()
        fleet.large.kill()
        answer.read()
    degraded = 'rate(gateway_request_duration_seconds_count{outcome="degraded"}[5m])'
    fleet.until(lambda: bool(fleet.watcher.values(degraded)), everything)
    refused = 'rate(gateway_refused_total{code="model_not_found"}[5m]) > 0'
    fleet.until(lambda: bool(fleet.watcher.values(refused)), everything)


@pytest.mark.parametrize(("name", "expression"), [pytest.param(n, e, id=n) for n, e in shown()])
def test_a_panel_shows_something(fleet: Fleet, name: str, expression: str) -> None:
    """Prometheus takes the expression, everything in it exists, and there are numbers."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert names(expression) <= fleet.exposed() | recorded | {"up"}
    found = fleet.watcher.values(expression)
    assert found or names(expression) & MAY_BE_EMPTY or fleet.watcher.eventually(expression)


def test_every_rule_works(fleet: Fleet) -> None:
    """Rules speak only of what exists, Prometheus evaluates each without an error, and what is recorded has numbers."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = fleet.exposed() | recorded | {"up"}
    assert {name for rule in rules() for name in names(rule["expr"])} <= known
    seen = [rule for group in fleet.watcher.get("rules")["groups"] for rule in group["rules"]]
    assert len(seen) == len(rules())
    assert {rule["health"] for rule in seen} == {"ok"}, [rule.get("lastError") for rule in seen]
    assert {name for name in recorded if not fleet.watcher.eventually(name)} == set()
    assert len(fleet.watcher.values("slo:burn:3d")) == len(OBJECTIVES)


def test_the_dashboards_variables_have_values(fleet: Fleet) -> None:
    """A dashboard lists gateways and nodes by a label of a metric that is there."""
    for path in support.DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = variable["definition"].removeprefix("label_values(").rstrip(")").split(", ")
                assert fleet.watcher.get(f"label/{label}/values", **{"match[]": metric})


def test_an_alert_reaches_those_who_ask(fleet: Fleet) -> None:
    """The large server is dead, and Prometheus says so before anybody is called: the alert is pending."""
    alerts = fleet.watcher.get("alerts")["alerts"]
    assert "PoolUnusable" in {alert["labels"]["alertname"] for alert in alerts}
