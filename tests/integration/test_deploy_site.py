"""Four real nodes behind a real gateway, as the four nodes of a real control plane, deployed to under load.

The nodes of KUBECONFIG's cluster must be fake: their pods run as processes here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.catalog.golden import GoldenPrompt, parse_golden
from pipeline.catalog.names import Target
from pipeline.deploy.render import RELEASE
from pipeline.ports.kube import NODE, POD, Cluster
from tests.support import built, kube, prometheus, served
from tests.support.deploys import BASE, IMAGES, ROOT
from tests.support.kubelet import NEVER, READY, Kubelet, gateway
from tests.support.llama_server import await_http
from tests.support.served import Made, Shop

pytestmark = [
    *kube.MARKS,
    pytest.mark.skipif(bool(built.missing()), reason=built.missing()),
    pytest.mark.skipif(bool(prometheus.missing()), reason=prometheus.missing()),
    pytest.mark.timeout(1500),
]
NODES = 4
GATES = [
    {"name": "burn-availability", "query": 'slo:burn:5m{slo="availability"}', "most": 6.0},
    {"name": "refused", "query": "sum(increase(edge_node_refused_releases_total[5m])) or vector(0)", "most": 0.0},
]


@dataclass
class Load:
    """Requests to a gateway, some a second, each in a session of its own; what came of them is counted."""

    url: str
    prompts: tuple[GoldenPrompt, ...]
    outcomes: Counter[str] = field(default_factory=Counter)
    endpoints: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, clients: int = 4) -> None:
        self._threads = [threading.Thread(target=self._ask_on, args=(i,), daemon=True) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, number: int) -> None:
        count = 0
        while not self._ended.wait(0.15):
            count += 1
            self._ask(self.prompts[count % len(self.prompts)], f"client-{number}-{count}")

    def _ask(self, prompt: GoldenPrompt, session: str) -> None:
        body = {
            "model": "tiny", "messages": [{"role": "user", "content": prompt.prompt}], "max_tokens": prompt.max_tokens,
            "temperature": 0, "session": session,
        }  # fmt: skip
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                text = json.load(answer)["choices"][0]["message"]["content"]
                self.endpoints[answer.headers["x-edge-endpoint"]] += 1
        except (OSError, ValueError, LookupError) as e:
            self.outcomes["failed"] += 1
            self.wrong.append(f"{e}: {e.read()[:200]!r}" if isinstance(e, urllib.error.HTTPError) else repr(e))
            return
        right = prompt.accepts(text)
        self.outcomes["right" if right else "wrong"] += 1
        if not right:
            self.wrong.append(f"{prompt.id}: {text!r}")


@dataclass
class Site:
    """A registry, a cluster with its machines, a gateway and Prometheus."""

    folder: Path
    cluster: Cluster
    namespace: str
    shop: Shop
    kubelet: Kubelet
    url: str
    load: Load

    def publish(self, version: int, model: Made, **options: Any) -> None:
        """Publish a release with the small model for every target."""
        data = model.gguf.read_bytes()
        more = {f"tiny-edge-{target}/model.gguf": data for target in Target}
        self.shop.publish(version, model, more=more, **options)

    def deploy(self, *options: str) -> subprocess.CompletedProcess[str]:
        argv = [
            sys.executable, "-m", "pipeline.cli", "deploy", "--config", str(self.folder / "deploy.yaml"),
            "--base", str(self.folder / "base"), "--registry", str(self.shop.registry), "--trust", str(self.shop.trust),
            "--state", str(self.folder / "seen.json"), "--apply", *options,
        ]  # fmt: skip
        before = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
        print(f"deploy: {done.returncode} after {time.monotonic() - before:.0f} s", done.stdout, done.stderr, sep="\n")
        return done

    def releases(self) -> list[str]:
        pods = self.cluster.find_all(POD, self.namespace, labels="app.kubernetes.io/name=node")
        return [p["metadata"]["annotations"][RELEASE] for p in sorted(pods, key=lambda p: p["metadata"]["name"])]

    def logs(self) -> str:
        return "\n".join(f"== {p}\n{p.read_text(errors='replace')[-1500:]}" for p in sorted(self.folder.rglob("*log")))


def _base(folder: Path) -> None:
    """Copy the base, for pods on all four nodes, whose readiness is the processes' own."""
    shutil.copytree(BASE, folder / "base")
    path = folder / "base/base/node.yaml"
    documents = list(yaml.safe_load_all(path.read_text()))
    template = documents[1]["spec"]["template"]
    template["metadata"]["annotations"] = {READY: NEVER}
    template["spec"].pop("nodeSelector")
    template["spec"]["tolerations"] = [{"operator": "Exists"}]
    path.write_text(yaml.safe_dump_all(documents))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """The demo teacher in three encodings: three releases."""
    root = tmp_path_factory.mktemp("models")
    return [served.teacher(root / kind, kind) for kind in ("f32", "bf16", "f16")]


@pytest.fixture
def site(models: list[Made], tmp_path: Path) -> Iterator[Site]:
    cluster = kube.cluster()
    if len(cluster.find_all(NODE)) != NODES:
        pytest.skip(f"the cluster must have {NODES} fake nodes (kube.sh nodes, kube.sh kubelet)")
    shop = served.shop(tmp_path / "shop")
    flags = ("--registry", str(shop.registry), "--trust", str(shop.trust))
    released = tmp_path / "releases.json"
    _base(tmp_path)
    with kube.namespace(cluster) as namespace:
        kubelet = Kubelet(cluster, namespace, tmp_path / "nodes", flags, released, NODES)
        program, port = gateway(tmp_path, kubelet.ports, released, flags)
        url = f"http://127.0.0.1:{port}"
        prompts = parse_golden(models[0].golden.decode(), "golden.jsonl")
        made = Site(tmp_path, cluster, namespace, shop, kubelet, url, Load(url, prompts))
        targets = {"gateway": [f"127.0.0.1:{port}"], "node": [f"127.0.0.1:{p}" for p in kubelet.ports]}
        try:
            await_http(f"{url}/healthz", program, 60)
            with prometheus.prometheus(tmp_path, targets) as figures:
                _configure(made, f"http://127.0.0.1:{figures.port}")
                kubelet.start()
                yield made
        finally:
            made.load.stop()
            kubelet.stop()
            program.kill()
            program.wait()


def _configure(site: Site, figures: str) -> None:
    edge = {"replicas": NODES, "target": str(served.here()), "slots": 2, "context": 256, "cpu": "500m"}
    document = {
        "namespace": site.namespace, "registry": "s3://models/releases", "images": IMAGES, "components": [], "edge": edge,
        "large": None, "door": {"url": site.url, "status": f"{site.url}/status", "prometheus": figures},
        "canary": {"share": 0.5, "soak_s": 5.0, "patience_s": 240.0, "look_s": 0.5, "judge_s": 3.0, "gates": GATES},
    }  # fmt: skip
    (site.folder / "deploy.yaml").write_text(yaml.safe_dump(document))


def test_a_bad_release_harms_no_request(site: Site, models: list[Made]) -> None:
    """A good release takes over and a bad one is taken back, while clients get every answer, and the right one."""
    one, two, three = models
    site.publish(1, one)
    assert site.deploy().returncode == 0, site.logs()
    assert site.releases() == ["1"] * NODES
    site.load.start()
    site.publish(2, two)
    assert site.deploy().returncode == 0, site.logs()
    assert site.releases() == ["2"] * NODES
    after_good = sum(site.load.outcomes.values())
    (first, *_) = three.answers
    site.publish(3, three, answers={**three.answers, first: [5, 6, 7]})
    bad = site.deploy()
    assert bad.returncode == 3, site.logs()
    assert "node-3 serves nothing" in bad.stderr or "golden answers" in bad.stderr
    assert site.releases() == ["2"] * NODES
    assert [s for s in site.kubelet.started if s.endswith("=3")] == ["node-3 --release=3"], "it reached one Pi alone"
    site.load.stop()
    outcomes = dict(site.load.outcomes)
    print(f"requests: {outcomes}, {after_good} until the bad release; by {dict(site.load.endpoints)}")
    assert outcomes.get("failed", 0) == 0, site.load.wrong[:5]
    assert outcomes.get("wrong", 0) == 0, site.load.wrong[:5]
    assert outcomes["right"] > after_good > 0
    assert len(site.load.endpoints) == NODES
