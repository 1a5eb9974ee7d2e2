"""The deploy job: from a verified release to a cluster that serves it, or does not and says why.

Rules: one deploy of a namespace at a time; what others manage stops it before anything changes; servers are shut before
their template changes, so that nothing reaches them but through the rollout; run again after a kill, it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from pipeline.catalog.golden import GoldenPrompt
from pipeline.catalog.names import Variant
from pipeline.deploy import apply, gitops, judge
from pipeline.deploy.canary import CLOSED, Judged, Phase, Pool, Progress, back
from pipeline.deploy.changes import Change
from pipeline.deploy.door import Gateway
from pipeline.deploy.gitops import Repository
from pipeline.deploy.observe import shut
from pipeline.deploy.progress import Lock, Store
from pipeline.deploy.render import EDGE, LARGE, TEMPLATE, Wanted, key, listed, render, returning
from pipeline.deploy.rollout import Rollout, let_through
from pipeline.deploy.settings import Settings
from pipeline.errors import ConflictError, Refusal, TrustError
from pipeline.manifest.statement import VariantEntry
from pipeline.ports.kube import STATEFUL_SET, Cluster, ForbiddenError, Object
from pipeline.ports.prometheus import Prometheus


@dataclass(frozen=True)
class Site:
    """Where a release goes, and how it is watched there: a cluster, its gateway, Prometheus (None: without figures).

    `clock` gives seconds since 1970, `ticks` seconds that never run back; `holder` names this run.
    """

    cluster: Cluster
    gateway: Gateway
    prometheus: Prometheus | None
    clock: Callable[[], float]
    ticks: Callable[[], float]
    sleep: Callable[[float], None]
    holder: str
    lock_s: int = 30


@dataclass(frozen=True)
class Outcome:
    """What a deploy did: the changes, the commit in a GitOps repository, how the rollout ended."""

    changes: tuple[Change, ...] = ()
    commit: str | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Job:
    """A release to be deployed; `prompts` gives a variant's golden prompts, `say` takes lines for the user.

    `fetched` gives the release, verified, once something needs it: taking one back does not. `back` says that it may be
    older than what is deployed.
    """

    settings: Settings
    fetched: Callable[[], Wanted]
    base: Sequence[Object]
    prompts: Callable[[VariantEntry], list[GoldenPrompt]]
    say: Callable[[str], None]
    back: bool = False

    @cached_property
    def wanted(self) -> Wanted:
        """The release, rendered by the settings."""
        return self.fetched()

    def rendered(self, before: Sequence[Object], *, alone: bool = False) -> list[Object]:
        """Return the release's objects, beside what was there before; `alone` if they are not rolled out at once."""
        self.check_forward(before)
        return render(self.base, replace(self.wanted, before=before, alone=alone))

    def committed(self, repository: Repository, deployed: Sequence[Object] | None = None) -> gitops.Committed:
        """Commit the release to a GitOps repository, to be rolled out beside what is `deployed`, or alone."""

        def edit(before: list[Object]) -> tuple[list[Object], str]:
            self.check_forward(before)
            return self.rendered(deployed or before, alone=deployed is None), gitops.message(self.wanted, before)

        return gitops.commit(repository, edit)

    def check_forward(self, before: Sequence[Object]) -> None:
        """Raise TrustError ROLLBACK for a release older than that of `before`, unless that is meant.

        A machine that remembers nothing finds here what was deployed. A move of the channel says that it is meant if it
        leads back from that release, or from a newer one.
        """
        version, move = self.wanted.version, self.wanted.release.pointer
        deployed = next((r.version for r in listed(before)), 0)
        led_back = move is not None and move.rollback and (move.previous or 0) >= deployed
        if version < deployed and not (self.back or led_back):
            raise TrustError(
                Refusal.ROLLBACK,
                f"rollback: release {version} is older than {deployed}, which is deployed",
                hint=f"if you mean to go back, roll the channel back, or add --release {version} or --allow-rollback",
            )

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """The variants that are served, by StatefulSet."""
        large = self.settings.large
        return {EDGE: self.settings.edge.variant} | ({LARGE: large.variant} if large else {})


def look(job: Job, cluster: Cluster, *, force: bool = False) -> tuple[Change, ...]:
    """Return what applying the release would change; nothing is changed."""
    before = _after(cluster, job.settings.namespace)
    return apply.look(cluster, apply.served(cluster, job.rendered(before)), before, force=force)


def look_back(
    cluster: Cluster, namespace: str, repository: Repository | None = None
) -> tuple[Progress, tuple[Change, ...]]:
    """Return the rollout that would be taken back, and what that would change; nothing is changed."""
    store = Store(cluster, namespace)
    last, before = _to_take_back(store), _returning(store)
    if repository is None:
        return last, apply.look(cluster, before, store.after, force=True)
    with repository.opened() as root:
        return last, gitops.changes(gitops.read(root, repository), before)


@dataclass(frozen=True)
class _Found:
    """The objects before a rollout, those after it, and what is different."""

    before: list[Object]
    after: list[Object]
    changes: tuple[Change, ...]
    commit: str | None = None


@dataclass
class Run:
    """One run of the job against a cluster; with a `repository`, Argo CD or Flux applies what is committed there."""

    job: Job
    site: Site
    repository: Repository | None = None
    force: bool = False

    def __post_init__(self) -> None:
        site, space = self.site, self.job.settings.namespace
        self.store = Store(site.cluster, space)
        self.lock = Lock(site.cluster, space, site.holder, site.ticks, site.lock_s)

    def deploy(self) -> Outcome:
        """Bring the release to the cluster, one Pi first.

        Raises:
            ConflictError: another deploy is at work, or others manage a field.
        """
        self._namespace()
        self._take()
        try:
            last = self.store.load()
            if last and not last.phase.ended:
                return self._go_on(last)
            return self._begin(last)
        finally:
            self.lock.give()

    def roll_back(self) -> Outcome:
        """Bring back what was there before the last rollout, whether it ended or not."""
        self._take()
        try:
            last = _to_take_back(self.store)
            reason = last.reason or "it was asked for"
            progress = last if last.phase is Phase.BACK else back(last, reason, self.site.clock())
            self.store.turn(progress)
            return Outcome(progress=self._drive(progress))
        finally:
            self.lock.give()

    def _begin(self, last: Progress | None) -> Outcome:
        found = self._commit(self.repository) if self.repository else self._look()
        if not found.changes and last and self._serves(last):
            return Outcome((), None, last)
        self._shut()
        progress = self._progress(found.before, found.after)
        self.store.begin(progress, found.before, found.after)
        if not self.repository:
            self._apply(found.changes)
        return Outcome(found.changes, found.commit, self._drive(progress))

    def _commit(self, repository: Repository) -> _Found:
        self._shut()
        # What was rolled out last is what there is to go back to: others may have been committed since that never were.
        deployed = self.store.after
        done = self.job.committed(repository, deployed)
        before = deployed or done.before
        return _Found(before, done.after, gitops.changes(before, done.after), done.commit)

    def _look(self) -> _Found:
        cluster, before = self.site.cluster, self.store.after
        after = apply.served(cluster, self.job.rendered(before))
        changes = apply.look(cluster, after, before, force=self.force)
        apply.check(changes)
        return _Found(before, after, changes)

    def _serves(self, last: Progress) -> bool:
        return last.phase is Phase.DONE and last.manifest_sha256 == self.job.wanted.release.digest

    def _go_on(self, last: Progress) -> Outcome:
        if last.manifest_sha256 != self.job.wanted.release.digest:
            raise ConflictError(
                f"the rollout of release {last.release} is not at its end",
                hint=f"finish it with --release {last.release}, or undo it with --rollback",
            )
        self.job.say(f"going on with the rollout of release {last.release}: {last.phase}")
        changes: tuple[Change, ...] = ()
        if last.phase is Phase.RUNNING and not self.repository:
            changes = apply.look(self.site.cluster, self.store.after, self.store.before, force=self.force)
            apply.check(changes)
            self._apply(changes)
        return Outcome(changes, None, self._drive(last))

    def _progress(self, before: Sequence[Object], after: Sequence[Object]) -> Progress:
        were = listed(before)
        others = [r for r in were if r.manifest_sha256 != self.job.wanted.release.digest]
        last = next(iter([*others, *were]), None)
        return Progress(
            release=self.job.wanted.version, manifest_sha256=self.job.wanted.release.digest,
            before=last.version if last else None, templates=_templates(after), since=self.site.clock(),
        )  # fmt: skip

    def _drive(self, progress: Progress) -> Progress:
        rollout = Rollout(
            self.site.cluster, self.store, self.lock, self.job.settings.canary, judge=self._judge,
            said=self.site.gateway.troubles, restore=self._restore, clock=self.site.clock, sleep=self.site.sleep,
            say=self.job.say,
        )  # fmt: skip
        if progress.phase is Phase.RUNNING:
            self.job.say(f"each step keeps: {judge.limits(self.job.settings.canary, figures=self._figures)}")
        # Nobody watched until now: servers are waited for anew, and promises kept anew.
        return rollout.run(progress.model_copy(update={"since": self.site.clock(), "settled": None}))

    @property
    def _figures(self) -> bool:
        return self.site.prometheus is not None

    def _judge(self, pools: Mapping[str, Pool]) -> Judged:
        found = [
            self._answers(name, pool) for name, pool in pools.items() if any(s.new and s.ready for s in pool.servers)
        ]
        if self.site.prometheus:
            found.append(judge.figures(self.site.prometheus.query, self.job.settings.canary.gates, self.site.clock()))
        first, *others = found
        for other in others:
            first = judge.both(first, other)
        return first

    def _answers(self, name: str, pool: Pool) -> Judged:
        def ask(variant: str, prompt: GoldenPrompt, session: str) -> judge.Said:
            self.lock.renew()
            return self.site.gateway.ask(variant, prompt, session)

        canary, entry = self.job.settings.canary, self.job.wanted.entry(self.job.variants[name])
        prompts = judge.worth_asking(self.job.prompts(entry), entry, canary.prompts)
        servers = [s.name for s in pool.servers if s.new and s.ready]
        file = entry.model_file
        assert file is not None, "it was rendered"
        return judge.answers(
            ask, judge.Round(entry.name, prompts, servers, file.sha256, canary.right, pool.replicas), self.site.clock()
        )

    def _restore(self) -> None:
        if not self.store.before:
            return
        before = _returning(self.store)
        if self.repository:
            last = self.store.load()
            gitops.restore(self.repository, before, (last and last.reason) or "it was asked for")
            return
        changes = apply.look(self.site.cluster, before, self.store.after, force=True)
        apply.apply(self.site.cluster, changes, force=True)

    def _apply(self, changes: Sequence[Change]) -> None:
        def done(change: Change) -> None:
            self.job.say(f"{change.verb}d {change.key[0]} {change.key[2]}")

        apply.apply(self.site.cluster, changes, force=self.force, done=done)

    def _shut(self) -> None:
        """Let nothing reach servers that run, before their template changes."""
        space = self.job.settings.namespace
        for name in (EDGE, LARGE):
            document = self.site.cluster.find(STATEFUL_SET, name, space)
            if document is not None and not shut(document):
                let_through(self.site.cluster, space, name, CLOSED)

    def _namespace(self) -> None:
        """Make the namespace, where the rollout's state is kept, if it is not there."""
        for document in self.job.rendered(()):
            with suppress(ForbiddenError):  # then it is there: an admin made it
                if document["kind"] == "Namespace" and apply.live(self.site.cluster, document) is None:
                    self.site.cluster.apply(document, manager=apply.MANAGER)

    def _take(self) -> None:
        began, told = self.site.ticks(), False
        while holder := self.lock.take():
            if not told:
                self.job.say(f"waits for {holder}, who deploys here")
                told = True
            if self.site.ticks() - began > 2 * self.site.lock_s:
                raise ConflictError(f"{holder} deploys here", hint="wait until that is at its end, then run it again")
            self.site.sleep(1)


def _after(cluster: Cluster, namespace: str) -> list[Object]:
    store = Store(cluster, namespace)
    store.load()
    return store.after


def _to_take_back(store: Store) -> Progress:
    last = store.load()
    if last is None or last.phase is Phase.FAILED or last.before is None:
        raise ConflictError("there is nothing to roll back to", hint="deploy an older release: --release")
    return last


def _returning(store: Store) -> list[Object]:
    return returning(store.before, store.after)


def _templates(documents: Sequence[Object]) -> dict[str, str]:
    found = {}
    for document in documents:
        kind, _, name = key(document)
        if kind == STATEFUL_SET.name and name in {EDGE, LARGE}:
            found[name] = document["spec"]["template"]["metadata"]["annotations"][TEMPLATE]
    return found
