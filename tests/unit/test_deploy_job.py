"""The deploy job against a cluster in memory: what it stores when, and what gateways know meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pipeline.catalog.golden import parse_golden
from pipeline.deploy import base
from pipeline.deploy.canary import CLOSED, Phase
from pipeline.deploy.door import Gateway
from pipeline.deploy.job import Job, Outcome, Run, Site, look, look_back
from pipeline.deploy.progress import Store
from pipeline.deploy.render import ADMITTED, RELEASE, RELEASES, Wanted, config_map, listed
from pipeline.errors import ConflictError, Refusal, RegistryError, ToolError, TrustError
from pipeline.ports.kube import Cluster
from tests.support.clusters import Held
from tests.support.deploys import BASE, GOLDEN, TRUST, Line, settings
from tests.support.doors import Door, opened

SETTINGS = settings(
    large=None, components=[], canary={"share": 0.5, "soak_s": 4, "patience_s": 60, "judge_s": 30, "gates": []}
)


@dataclass
class Shop:
    """A site in a cluster in memory, time that passes by waiting, and a job for each release."""

    line: Line
    held: Held
    door: Door
    now: float = 0.0
    said: list[str] = field(default_factory=list)
    hear: Callable[[str], None] = lambda _: None

    @property
    def cluster(self) -> Cluster:
        return self.held  # type: ignore[return-value]

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def _say(self, line: str) -> None:
        self.said.append(line)
        self.hear(line)

    def job(self, version: int) -> Job:
        prompts = parse_golden(GOLDEN.decode(), "golden.jsonl")
        wanted = Wanted(self.line.accepted(version), TRUST, SETTINGS)
        return Job(SETTINGS, lambda: wanted, base.load(BASE, SETTINGS.components), lambda _: list(prompts), self._say)

    def run(self, version: int) -> Run:
        gateway = Gateway(self.door.url)
        site = Site(self.cluster, gateway, None, lambda: self.now, lambda: self.now, self._pass, "here")
        return Run(self.job(version), site)

    def deploy(self, version: int) -> Outcome:
        return self.run(version).deploy()

    def store(self) -> Store:
        found = Store(self.cluster, SETTINGS.namespace)
        found.load()
        return found

    def known(self) -> list[int]:
        """The releases that gateways accept; the admission policy lets in the same."""
        found = [self.held.objects["ConfigMap", name] for name in (RELEASES, ADMITTED)]
        admitted = config_map(found, ADMITTED)
        assert {str(r.version) for r in listed(found)} == {v for k, v in admitted.items() if k.startswith("manifest.")}
        return [r.version for r in listed(found)]

    def releases(self) -> list[str]:
        return [p["metadata"]["annotations"][RELEASE] for _, p in sorted(self.held.pods.items())]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """Three Pis that serve release 1."""
    held = Held()
    with opened(held, SETTINGS.namespace) as door:  # type: ignore[arg-type]
        found = Shop(Line(tmp_path), held, door)
        found.deploy(1)
        assert found.releases() == ["1"] * 3
        yield found


def test_going_back_ends_where_a_pod_never_leaves(shop: Shop) -> None:
    """It is waited for as long as the patience, the partition is moved once each way, and all is shut in the end."""
    shop.door.wrong.add("2")

    def breaks(line: str) -> None:
        if "is rolled back" in line:
            shop.held.stuck.add("node-2")
            shop.held.partitions.clear()

    shop.hear = breaks
    ended = shop.deploy(2).progress
    assert ended
    assert ended.phase is Phase.FAILED
    assert "not back: node-2" in (ended.reason or "")
    assert shop.held.partitions == [CLOSED, 0, CLOSED]
    assert len([line for line in shop.said if "is rolled back" in line]) == 1
    assert shop.now < 3 * SETTINGS.canary.patience_s


@pytest.mark.parametrize("problem", [ToolError("the API server is away", hint="wait"), KeyboardInterrupt()], ids=repr)
def test_the_end_of_going_back_is_one_write(shop: Shop, problem: BaseException) -> None:
    """Whatever comes of its event, what is to be is what was before; an event that fails is said and nothing more."""
    shop.door.wrong.add("2")
    shop.held.event = problem
    if isinstance(problem, ToolError):
        assert shop.deploy(2).progress == shop.store().load()
        assert "there is no event of it: the API server is away" in shop.said
    else:
        while not (last := shop.store().load()) or not last.phase.ended or last.release != 2:
            with pytest.raises(KeyboardInterrupt):
                shop.deploy(2)
    last = shop.store().load()
    assert last
    assert last.phase is Phase.FAILED
    assert [r.version for r in listed(shop.store().after)] == [1]


@pytest.mark.parametrize("asked_for", [False, True], ids=["a bad release", "a good one, taken back"])
def test_servers_that_go_back_are_known_until_they_are_back(shop: Shop, asked_for: bool) -> None:
    """Gateways and the admission policy know the failed release behind the old ones; the next deploy drops it."""
    if asked_for:
        shop.deploy(2)
        shop.run(2).roll_back()
    else:
        shop.door.wrong.add("2")
        shop.deploy(2)
    assert shop.releases() == ["1"] * 3
    assert shop.known() == [1, 2]
    shop.deploy(3)
    assert shop.known() == [3, 1]


def test_who_goes_on_waits_anew(shop: Shop) -> None:
    """Twenty minutes after a kill a server gets its patience, and a step that nobody watched is watched as long as any."""

    def killed(line: str) -> None:
        if "s to go" in line:
            raise KeyboardInterrupt

    shop.hear = killed
    with pytest.raises(KeyboardInterrupt):
        shop.deploy(2)
    began = shop.now = shop.now + 1200
    shop.held.stuck.add("node-2")
    at: dict[str, float] = {}

    def mends(line: str) -> None:
        at.setdefault(line, shop.now)
        if line == "one Pi: 0 of 1 node ready":
            shop.held.stuck.clear()

    shop.hear = mends
    ended = shop.deploy(2).progress
    assert ended
    assert ended.phase is Phase.DONE
    assert at["release 2: a share of the Pis"] >= began + SETTINGS.canary.soak_s


def test_what_is_deployed_is_not_replaced_by_what_is_older(shop: Shop) -> None:
    """The cluster is the memory of a machine that has none; nothing is changed, or shown, unless that is meant."""
    shop.deploy(2)
    for attempt in (lambda: shop.deploy(1), lambda: look(shop.job(1), shop.cluster)):
        with pytest.raises(TrustError) as caught:
            attempt()
        assert caught.value.refusal is Refusal.ROLLBACK
    assert shop.releases() == ["2"] * 3
    run = shop.run(1)
    run.job = replace(run.job, back=True)
    run.deploy()
    assert shop.releases() == ["1"] * 3


def test_what_takes_a_release_back_needs_no_registry(shop: Shop) -> None:
    """Neither to look at what would change, which is shown of the rollback, nor to do it."""

    def away() -> Wanted:
        raise RegistryError("the registry is away", hint="wait")

    shop.deploy(2)
    last, changes = look_back(shop.cluster, SETTINGS.namespace)
    assert (last.release, last.before) == (2, 1)
    assert "+        - --release=1" in "".join(c.diff for c in changes)
    run = shop.run(2)
    run.job = replace(run.job, fetched=away)
    run.roll_back()
    assert shop.releases() == ["1"] * 3
    with pytest.raises(ConflictError):
        look_back(shop.cluster, SETTINGS.namespace)
