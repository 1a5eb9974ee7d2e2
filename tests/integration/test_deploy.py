"""Releases brought to a real control plane by `edge-release deploy`: steps, rollbacks, conflicts, kills, diffs, budgets.

KUBECONFIG names a cluster with three nodes labelled edge=pi and one labelled gpu=nvlink with four GPUs. Where they are fake
nodes, pods are said to run and answer nothing; a stand-in answers in their names.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.catalog.names import Channel
from pipeline.deploy.apply import served
from pipeline.deploy.canary import CLOSED
from pipeline.deploy.render import RELEASE
from pipeline.ports.kube import CONFIG_MAP, EVENT, POD, STATEFUL_SET, Cluster, Evicted, Kind, Object
from pipeline.registry.folder import FolderStore
from pipeline.registry.publish import publish
from tests.support import kube
from tests.support.deploys import BASE, FILES, IMAGES, ROOT, measure
from tests.support.doors import Door, opened
from tests.support.releases import LINE, Publisher

pytestmark = [*kube.MARKS, pytest.mark.timeout(600)]
CANARY = {"share": 0.5, "soak_s": 1.0, "patience_s": 60.0, "look_s": 0.2, "judge_s": 0.5}


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@dataclass
class Shop:
    """A site with a registry, a namespace, and a door."""

    folder: Path
    cluster: Cluster
    namespace: str
    door: Door
    publisher: Publisher

    def publish(self, version: int) -> None:
        """Publish a release to dev."""
        signed = self.publisher.release(self.folder / f"release-{version}", version, files=FILES, mutate=self._dated)
        publish(
            FolderStore(self.folder / "registry"), signed, channel=Channel.DEV, signer=self.publisher.sign,
            opener=self.publisher.opener, now=datetime.now(UTC),
        )  # fmt: skip

    @staticmethod
    def _dated(document: dict[str, Any]) -> None:
        measure(document)
        document["predicate"]["release"]["expires"] = (datetime.now(UTC) + timedelta(days=7)).isoformat()

    def configure(self, **keys: Any) -> None:
        """Write the site's settings."""
        gates = [{"name": "burn", "query": "vector(0)", "most": 6.0}]
        document = {
            "namespace": self.namespace, "registry": "s3://models/releases", "images": IMAGES, "components": [],
            "large": {"replicas": 1}, "door": {"url": self.door.url, "prometheus": self.door.url},
            "canary": {**CANARY, "gates": gates}, **keys,
        }  # fmt: skip
        (self.folder / "deploy.yaml").write_text(yaml.safe_dump(document))

    def argv(self, *options: str) -> list[str]:
        return [
            sys.executable, "-m", "pipeline.cli", "deploy", "--config", str(self.folder / "deploy.yaml"),
            "--base", str(self.folder / "base"), "--registry", str(self.folder / "registry"),
            "--trust", str(self.folder / "trust.yaml"), "--state", str(self.folder / "seen.json"), *options,
        ]  # fmt: skip

    def deploy(self, *options: str) -> Done:
        """Run the command to its end."""
        done = subprocess.run(self.argv(*options), capture_output=True, text=True, check=False, cwd=ROOT)
        print(*options, done.returncode, done.stdout[-2000:], done.stderr[-4000:], sep="\n")
        return Done(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def crashing(self, name: str) -> Iterator[None]:
        """Let what is rendered meanwhile crash, as the fake kubelet plays it."""
        path = self.folder / f"base/base/{name}.yaml"
        text = path.read_text()
        path.write_text(
            text.replace(
                "  template:\n    metadata:\n",
                '  template:\n    metadata:\n      annotations: {fake-kubelet/crash: "true"}\n',
            )
        )
        assert path.read_text() != text
        try:
            yield
        finally:
            path.write_text(text)

    def stateful(self, name: str) -> Object:
        found = self.cluster.find(STATEFUL_SET, name, self.namespace)
        assert found
        return found

    def partition(self, name: str) -> int:
        return int(self.stateful(name)["spec"]["updateStrategy"]["rollingUpdate"]["partition"])

    def pods(self, name: str) -> dict[str, Object]:
        """Pods by their names."""
        found = self.cluster.find_all(POD, self.namespace, labels=f"app.kubernetes.io/name={name}")
        return {p["metadata"]["name"]: p for p in found}

    def releases(self, name: str) -> list[str]:
        """The releases of pods, in the order of their names."""
        return [p["metadata"]["annotations"][RELEASE] for _, p in sorted(self.pods(name).items())]

    def uids(self, name: str) -> dict[str, str]:
        return {pod: p["metadata"]["uid"] for pod, p in self.pods(name).items()}


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    found = kube.cluster()
    kube.needs_nodes(found, kube.PIS, 3)
    kube.needs_nodes(found, "gpu=nvlink", 1)
    return found


@pytest.fixture
def shop(cluster: Cluster, tmp_path: Path) -> Iterator[Shop]:
    """A site that serves release 1; release 2 is published."""
    with kube.namespace(cluster) as name, opened(cluster, name) as door:
        found = Shop(tmp_path, cluster, name, door, Publisher())
        shutil.copytree(BASE, tmp_path / "base")
        pem = found.publisher.pair.public_pem.decode()
        (tmp_path / "trust.yaml").write_text(yaml.safe_dump({"line": LINE, "public_keys": [pem]}))
        found.configure()
        found.publish(1)
        assert found.deploy("--apply").code == 0
        found.publish(2)
        yield found


def test_a_release_takes_over_step_by_step(shop: Shop) -> None:
    """One Pi, a share, all, then the NVLink pool; afterwards nothing passes any more, and once more is nothing to do."""
    done = shop.deploy("--apply")
    assert done.code == 0
    steps = [
        "release 2: a share of the Pis",
        "release 2: all Pis",
        "release 2: the NVLink pool",
        "release 2 serves everywhere",
    ]
    said = done.err.splitlines()
    assert [line for line in said if line in steps] == steps
    assert shop.releases("node") == ["2", "2", "2"]
    assert shop.releases("large") == ["2"]
    assert [shop.partition(name) for name in ("node", "large")] == [CLOSED, CLOSED]
    events = shop.cluster.find_all(EVENT, shop.namespace, fields="reason=ReleaseStep,involvedObject.name=node")
    assert {e["message"] for e in events} >= set(steps)
    listed = shop.cluster.find(CONFIG_MAP, "releases", shop.namespace)
    assert listed
    assert [r["version"] for r in json.loads(listed["data"]["releases.json"])["releases"]] == [2, 1]
    asked, uids = shop.door.asked, shop.uids("node")
    again = shop.deploy("--apply", "--json")
    assert (again.code, again.document["phase"], again.document["changes"]) == (0, "done", [])
    assert (shop.door.asked, shop.uids("node")) == (asked, uids)


def test_servers_that_crash_are_rolled_back(shop: Shop) -> None:
    """The first Pi's crash ends it: the others were never touched, the first serves the old release again."""
    before = shop.uids("node")
    with shop.crashing("node"):
        done = shop.deploy("--apply")
    assert done.code == 3
    assert "node-2 is in CrashLoopBackOff" in done.err
    assert "release 1 serves" in done.err
    after = shop.uids("node")
    assert [pod for pod in before if before[pod] != after[pod]] == ["node-2"]
    assert shop.releases("node") == ["1", "1", "1"]
    assert shop.stateful("node")["metadata"]["annotations"][RELEASE] == "1"
    assert shop.partition("node") == CLOSED
    (warning,) = shop.cluster.find_all(EVENT, shop.namespace, fields="reason=ReleaseRolledBack,type=Warning")[-1:]
    assert "CrashLoopBackOff" in warning["message"]
    left = shop.deploy("--apply", "--dry-run", "--release", "1", "--allow-rollback", "--json").document
    assert [c["name"] for c in left["changes"]] == ["admitted", "releases"], "they know of it until the next deploy"
    assert shop.deploy("--apply").code == 0, "what crashed is mended, and the same release goes out"


def test_the_last_step_takes_all_steps_back(shop: Shop) -> None:
    """Where the large server crashes, the Pis, which were done, go back too."""
    with shop.crashing("large"):
        done = shop.deploy("--apply", "--json")
    assert done.code == 3
    assert (done.document["phase"], done.document["before"]) == ("rolled back", 1)
    assert shop.releases("node") == ["1", "1", "1"]
    assert shop.releases("large") == ["1"]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        pytest.param(lambda door: door.wrong.add("2"), "golden answers are wrong", id="wrong answers"),
        pytest.param(
            lambda door: setattr(door, "figure", 7.0), "burn is 7, at most 6 is allowed", id="a burning budget"
        ),
    ],
)
def test_promises_that_are_not_kept_are_rolled_back(shop: Shop, harm: Callable[[Door], None], reason: str) -> None:
    """Answers that are not the evidence's, and a figure over its bound, end a rollout at its first step."""
    harm(shop.door)
    done = shop.deploy("--apply")
    assert done.code == 3
    assert reason in done.err
    assert shop.releases("node") == ["1", "1", "1"]


def test_without_a_figure_nothing_goes_on(shop: Shop) -> None:
    """A Prometheus that knows nothing is waited for, and in the end is a no."""
    shop.configure(canary={**CANARY, "patience_s": 8.0, "gates": [{"name": "burn", "query": "x", "most": 6.0}]})
    shop.door.figure = None
    done = shop.deploy("--apply")
    assert done.code == 3
    assert "burn: there is no figure" in done.err
    assert shop.releases("node") == ["1", "1", "1"]


def test_what_others_manage_is_told_of_and_left(shop: Shop) -> None:
    """Who has which field is said, and nothing at all is applied; with --force it is taken over."""
    spec = {"template": {"spec": {"terminationGracePeriodSeconds": 7}}}
    theirs = {
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "node", "namespace": shop.namespace},
        "spec": spec,
    }  # fmt: skip
    shop.cluster.apply(theirs, manager="somebody-else", force=True)
    before = shop.cluster.find(CONFIG_MAP, "releases", shop.namespace)
    done = shop.deploy("--apply")
    assert done.code == 7
    assert "somebody-else has .spec.template.spec.terminationGracePeriodSeconds of StatefulSet node" in done.err
    assert "--force" in done.err
    assert shop.cluster.find(CONFIG_MAP, "releases", shop.namespace) == before
    dry = shop.deploy("--apply", "--dry-run", "--json")
    assert dry.code == 7
    (conflict,) = [c for change in dry.document["changes"] for c in change.get("conflicts", [])]
    assert conflict["manager"] == "somebody-else"
    assert shop.deploy("--apply", "--force").code == 0
    assert shop.stateful("node")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 150


def test_the_role_deploy_suffices(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account of that Role alone brings a release out, or back; the first deploy, of roles and all, it may not make."""
    _as_account(shop, monkeypatch)
    done = shop.deploy("--apply")
    assert done.code == 0
    assert shop.releases("node") == ["2", "2", "2"]
    shop.publish(3)
    shop.door.wrong.add("3")
    assert shop.deploy("--apply").code == 3
    assert shop.releases("node") == ["2", "2", "2"]
    path = shop.folder / "base/base/accounts.yaml"
    path.write_text(path.read_text().replace("verbs: [get, create, update]", "verbs: ['*']"))
    greedy = shop.deploy("--apply")
    assert greedy.code == 4
    assert "forbidden" in greedy.err


def _as_account(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let KUBECONFIG be that of a service account with the Role `deploy`."""
    space = shop.namespace
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "deployer", "namespace": space}}
    bound = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "deployer", "namespace": space},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "deploy"},
        "subjects": [{"kind": "ServiceAccount", "name": "deployer", "namespace": space}],
    }  # fmt: skip
    secret = {
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {
            "name": "deployer", "namespace": space, "annotations": {"kubernetes.io/service-account.name": "deployer"},
        },
    }  # fmt: skip
    for document in (account, bound, secret):
        shop.cluster.create(document)

    def token() -> str:
        found = shop.cluster.find(Kind("v1", "Secret"), "deployer", space) or {}
        return base64.b64decode(found.get("data", {}).get("token", "")).decode()

    config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    for user in config["users"]:
        user["user"] = {"token": kube.eventually(token)}
    path = shop.folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))


def test_a_dry_run_shows_the_diff_and_changes_nothing(shop: Shop) -> None:
    """Only what differs is shown, defaults of the server are not."""
    versions = {name: shop.stateful(name)["metadata"]["resourceVersion"] for name in ("node", "large")}
    done = shop.deploy("--apply", "--dry-run")
    assert done.code == 0
    headers = [line for line in done.out.splitlines() if line.startswith("+++ ")]
    assert headers == [
        f"+++ b/{kind}/{shop.namespace}/{name}"
        for kind, name in (
            ("ConfigMap", "admitted"), ("ConfigMap", "releases"), ("StatefulSet", "large"), ("StatefulSet", "node")
        )
    ]  # fmt: skip
    assert "+        - --release=2" in done.out
    assert versions == {name: shop.stateful(name)["metadata"]["resourceVersion"] for name in versions}


@pytest.mark.parametrize("seen", ["a share of the Pis", "rolled back"], ids=["going forward", "going back"])
def test_killed_it_goes_on_elsewhere(shop: Shop, seen: str) -> None:
    """Another process, with nothing but the cluster and the registry, brings it to the same end."""
    if seen == "rolled back":
        shop.door.wrong.add("2")
    _kill_once(shop, seen)
    (shop.folder / "seen.json").unlink()
    done = shop.deploy("--apply")
    assert "going on with the rollout of release 2" in done.err
    assert done.code == (3 if seen == "rolled back" else 0)
    assert shop.releases("node") == (["1"] * 3 if seen == "rolled back" else ["2"] * 3)


def _kill_once(shop: Shop, seen: str) -> None:
    """Start a deploy and kill it once it says something."""
    with subprocess.Popen(shop.argv("--apply"), stderr=subprocess.PIPE, text=True, cwd=ROOT) as program:
        assert program.stderr
        for line in program.stderr:
            if seen in line:
                break
        program.send_signal(signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL


def test_another_release_waits_for_the_end_of_one_under_way(shop: Shop) -> None:
    """Until a killed rollout is finished or undone no other begins; to undo it takes no registry, and the old one serves."""
    _kill_once(shop, "a share of the Pis")
    shop.publish(3)
    other = shop.deploy("--apply")
    assert other.code == 7
    assert "release 2 is not at its end" in other.err
    away = (shop.folder / "registry").rename(shop.folder / "away")
    shown = shop.deploy("--apply", "--rollback", "--dry-run")
    assert "+        - --release=1" in shown.out
    assert "release 1: " in shown.err
    assert shop.deploy("--apply", "--rollback").code == 0
    away.rename(shop.folder / "registry")
    assert shop.releases("node") == ["1", "1", "1"]
    assert shop.deploy("--apply").code == 0
    assert shop.releases("node") == ["3", "3", "3"]


def test_the_second_of_two_waits_for_the_first(shop: Shop) -> None:
    """It says for whom, and then finds nothing left to do; a look needs no lock."""
    with _begun(shop) as program:
        assert shop.deploy("--apply", "--dry-run").code == 0
        second = shop.deploy("--apply")
        assert program.stderr
        program.stderr.read()
        assert program.wait() == 0
    assert "who deploys here" in second.err
    assert second.code == 0
    assert shop.releases("node") == ["2", "2", "2"]


def test_who_froze_lost(shop: Shop) -> None:
    """A deploy that stood still for longer than its lock lasts finds that another went on, and does nothing more."""
    with _begun(shop) as program:
        program.send_signal(signal.SIGSTOP)
        second = shop.deploy("--apply")
        program.send_signal(signal.SIGCONT)
        assert program.stderr
        said = program.stderr.read()
        assert program.wait() == 7, said
    assert "going on with the rollout of release 2" in second.err
    assert second.code == 0
    assert shop.releases("node") == ["2", "2", "2"]


@contextmanager
def _begun(shop: Shop) -> Iterator[subprocess.Popen[str]]:
    """Yield a deploy that is at its second step."""
    with subprocess.Popen(shop.argv("--apply"), stderr=subprocess.PIPE, text=True, cwd=ROOT) as program:
        assert program.stderr
        next(line for line in program.stderr if "a share of the Pis" in line)
        yield program


def test_what_is_not_rendered_any_more_goes(shop: Shop) -> None:
    """An object that the base lost is deleted from the cluster; and comes back when the rollout fails."""
    path = shop.folder / "base/base/kustomization.yaml"
    path.write_text(path.read_text().replace("  - network.yaml\n", ""))
    policy = Kind("networking.k8s.io/v1", "NetworkPolicy")
    assert shop.cluster.find(policy, "default-deny", shop.namespace)
    shop.door.wrong.add("2")
    assert shop.deploy("--apply").code == 3
    assert shop.cluster.find(policy, "default-deny", shop.namespace)
    shop.door.wrong.clear()
    assert shop.deploy("--apply").code == 0
    assert shop.cluster.find(policy, "default-deny", shop.namespace) is None


def test_budgets_hold_when_machines_are_drained(shop: Shop) -> None:
    """Of the Pis one at a time may be evicted; the next only after it is back."""
    assert shop.cluster.evict(shop.namespace, "node-0") is Evicted.ACCEPTED
    assert shop.cluster.evict(shop.namespace, "node-1") is Evicted.BLOCKED
    kube.eventually(lambda: shop.cluster.evict(shop.namespace, "node-1") is Evicted.ACCEPTED)
    kube.eventually(lambda: shop.releases("node") == ["1", "1", "1"])


def _git(root: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", str(root), *args], check=True, capture_output=True, text=True).stdout


def test_a_commit_is_rolled_out_once_it_is_applied(shop: Shop) -> None:
    """With --gitops and --rollout somebody else applies; a failure is a commit that takes the release back."""
    repository = shop.folder / "fleet.git"
    _git(shop.folder, "init", "--quiet", "--bare", "--initial-branch=main", str(repository))
    assert shop.deploy("--gitops", str(repository), "--release", "1").code == 0
    shop.door.wrong.add("2")
    with subprocess.Popen(
        shop.argv("--gitops", str(repository), "--rollout"), stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as program:
        kube.eventually(lambda: _commits(repository)[0].startswith("Release demo 2"))
        _sync(shop, repository)
        kube.eventually(lambda: _commits(repository)[0] == "Roll back")
        _sync(shop, repository)
        assert program.stderr
        said = program.stderr.read()
        assert program.wait() == 3, said
    assert "golden answers are wrong" in said
    assert shop.releases("node") == ["1", "1", "1"]
    shop.door.wrong.clear()


def _commits(repository: Path) -> list[str]:
    return _git(repository, "log", "--format=%s").splitlines()


def _sync(shop: Shop, repository: Path) -> None:
    """Apply what is committed, as Argo CD does."""
    listing = yaml.safe_load(_git(repository, "show", "HEAD:edge-release/kustomization.yaml"))
    for name in listing["resources"]:
        document = yaml.safe_load(_git(repository, "show", f"HEAD:edge-release/{name}"))
        (given,) = served(shop.cluster, [document])
        shop.cluster.apply(given, manager="argocd-controller", force=True)
