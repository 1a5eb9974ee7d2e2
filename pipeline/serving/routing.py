"""Where a request goes: a pure function of the request, the fleet's snapshot and the policy.

Rules, in this order; a rule that leaves no endpoint refuses the request and says why:

1. An endpoint counts if it is ready, its circuit lets requests through, it did not fail this request before, and the
   variant and digest it claims are a verified release's.
2. A request that names a variant is answered by it alone. A sensitive one never leaves the edge.
3. Prompt and answer must fit an endpoint's context.
4. Batch, long answers, long prompts and the hint `large` need the NVLink pool. While that is unreachable the edge
   answers with a smaller variant, marked as degraded.
5. What is left goes to the nearest edge endpoint with the hinted tier; to the NVLink pool where none has it loaded, or
   all are busy (expected wait, processors). A busy edge is kept where the NVLink pool is far away or gone.
6. Full queues, slots kept free of batch and a deadline that cannot be met take endpoints away before the choice.

Among equals: the channel's own release before the one it replaced, a variant tuned to the request's family where the
manifest says that it is better, the session's endpoint, the idler, the nearer, the name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from pipeline.catalog.names import Tier
from pipeline.serving import affinity, capacity, ranking
from pipeline.serving.decision import Choice, Counted, Decision, Declined, Denied, Hint, Priority, Reason, Request
from pipeline.serving.policy import Policy
from pipeline.serving.ranking import Option
from pipeline.serving.snapshot import Snapshot
from pipeline.serving.status import Pool

_SIZES = {tier: size for size, tier in enumerate(Tier)}


_Options = Sequence[Option]
_Rule = tuple[Denied, Callable[[Option], bool]]


def route(request: Request, snapshot: Snapshot, policy: Policy) -> Decision | Declined:
    """Return where a request goes, or why it is refused."""
    asked = _Asked(request, snapshot, policy, _need(request, policy))
    options: _Options = ranking.options(request, snapshot, policy)
    for denied, keep in asked.musts():
        options = [o for o in options if keep(o)]
        if not options:
            return Declined(denied)
    bound = asked.bound(options)
    if bound is None:
        return Declined(Denied.CORE_DOWN, retry_after_s=1)
    loads = asked.loads()
    able = [o for o in options if all(keep(o) for _, keep in loads)]
    takers = able if bound is options else [o for o in able if o.pool is Pool.NVLINK]
    if not takers:
        return asked.declined(bound, loads)
    ladder, reason = asked.ladder(bound, takers)
    return asked.decide(ladder, reason, able)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question to routing, with what its rules need; `need` is why only the NVLink pool will do, if it is so."""

    request: Request
    snapshot: Snapshot
    policy: Policy
    need: Reason | None

    def musts(self) -> list[_Rule]:
        """What no load excuses."""
        request = self.request
        rules: list[_Rule] = [(Denied.NO_ENDPOINT, lambda _: True)]
        if request.sensitive:
            rules.append((Denied.NO_EDGE, lambda o: o.pool is Pool.EDGE))
        if request.variant is not None:
            rules.append((Denied.NO_VARIANT, lambda o: o.offered.name == request.variant))
        if request.counted is Counted.TOKENIZER:
            rules.append((Denied.TOO_LONG, self._fits))
        return rules

    def loads(self) -> list[_Rule]:
        """What a later try may meet."""
        snapshot, policy, request = self.snapshot, self.policy, self.request
        rules: list[_Rule] = [
            (Denied.OVERLOADED, lambda o: not capacity.is_full(o.endpoint, snapshot.load(o.endpoint), policy))
        ]
        if request.priority is Priority.BATCH:
            rules.append(
                (
                    Denied.BATCH_YIELDS,
                    lambda o: capacity.is_free_for_batch(o.endpoint, snapshot.load(o.endpoint), policy),
                )
            )
        if (deadline := request.deadline_ms) is not None:
            rules.append(
                (Denied.DEADLINE, lambda o: o.wait_ms + capacity.work_ms(o.endpoint, request, policy) <= deadline)
            )
        return rules

    def is_kept(self) -> bool:
        """Whether the request's own word settles where it goes, so that no pool is preferred."""
        return self.request.sensitive or self.request.variant is not None

    def bound(self, options: _Options) -> _Options | None:
        """Return the options a request is bound to by what it needs; None where it must be refused."""
        if self.need is None or self.is_kept():
            return options
        return _pool(options, Pool.NVLINK) or (options if self.policy.degrade else None)

    def declined(self, options: _Options, loads: Sequence[_Rule]) -> Declined:
        """Return the first rule that leaves none of the options, and when to try again."""
        for denied, keep in loads:
            before, options = options, [o for o in options if keep(o)]
            if not options:
                return Declined(denied, self._retry_after(denied, before))
        raise AssertionError("one of the rules left none")

    def _retry_after(self, denied: Denied, options: _Options) -> int | None:
        """Return the whole seconds until one of the options may take the request, None where none ever will."""
        late = self.request.deadline_ms if denied is Denied.DEADLINE else None
        work = min(capacity.work_ms(o.endpoint, self.request, self.policy) for o in options)
        if late is not None and work > late:
            return None
        return max(ceil(min(o.wait_ms for o in options) / 1000), 1)

    def ladder(self, bound: _Options, able: _Options) -> tuple[_Options, Reason]:
        """Return the options in the order they are taken, and why the first one is."""
        if self.is_kept():
            return self._ordered(able), Reason.SENSITIVE if self.request.sensitive else Reason.PINNED
        if self.need is not None:
            return self._ordered(able), self.need if _pool(able, Pool.NVLINK) else Reason.DEGRADED
        return self._edge_first(bound, able)

    def _edge_first(self, bound: _Options, able: _Options) -> tuple[_Options, Reason]:
        core = self._ordered(_pool(able, Pool.NVLINK))
        edge = self._ordered(_suited([o for o in able if self._has_tier(o)]))
        idle = [o for o in edge if not o.busy]
        if idle:
            return [*idle, *core, *(o for o in edge if o.busy)], self._why(idle)
        if not edge and core:
            return core, self._absent(bound)
        if not edge:
            return self._ordered(able), Reason.DEGRADED if all(map(self._is_smaller, able)) else Reason.CORE_DOWN
        if not core:
            return edge, Reason.CORE_DOWN
        if min(o.endpoint.round_trip_ms for o in core) > self.policy.core_far_ms:
            return [*edge, *core], Reason.CORE_FAR
        return [*core, *edge], Reason.QUEUE_WAIT if edge[0].wait_ms > self.policy.queue_wait_ms else Reason.CPU

    def _why(self, idle: _Options) -> Reason:
        if idle[0].preference == 0:
            return Reason.FAMILY
        return Reason.AFFINITY if self.request.affinity and len(self._equals(idle)) > 1 else Reason.TINY_EDGE

    def _absent(self, bound: _Options) -> Reason:
        """Return why no edge endpoint of the tier is able."""
        loaded = [o.endpoint for o in bound if self._has_tier(o)]
        if not loaded:
            return Reason.NOT_LOADED
        full = all(capacity.is_full(e, self.snapshot.load(e), self.policy) for e in loaded)
        return Reason.QUEUE_WAIT if full else Reason.DEADLINE

    def _ordered(self, options: _Options) -> list[Option]:
        """Return options from the best to the last; the session's own endpoint leads its equals."""
        order = sorted(options, key=lambda o: o.rank)
        if self.request.affinity is None or len(order) < 2:
            return order
        equals = [o.endpoint for o in self._equals(order)]
        home = affinity.home(self.request.affinity, equals, self.snapshot, self.policy)
        return sorted(order, key=lambda o: o.endpoint is not home)

    def _equals(self, order: _Options) -> list[Option]:
        """Return the options that nothing but load and distance within `near_ms` tells from the best."""
        best = min(o.kind for o in order)
        alike = [o for o in order if o.kind == best]
        nearest = min(o.endpoint.round_trip_ms for o in alike)
        return [o for o in alike if o.endpoint.round_trip_ms <= nearest + self.policy.near_ms]

    def _has_tier(self, option: Option) -> bool:
        return option.pool is Pool.EDGE and option.offered.tier is self._tier()

    def _tier(self) -> Tier:
        return Tier.MID_TIER if self.request.hint is Hint.MID else Tier.TINY_EDGE

    def _fits(self, option: Option) -> bool:
        limit = option.endpoint.context or option.offered.context
        return not limit or self.request.prompt_tokens + (self.request.max_tokens or 1) <= limit

    def _is_smaller(self, option: Option) -> bool:
        return _SIZES[option.offered.tier] < _SIZES[self._tier()]

    def _choice(self, option: Option) -> Choice:
        smaller = option.pool is Pool.EDGE and (self.need is not None or self._is_smaller(option))
        degraded = smaller and self.request.variant is None
        return Choice(option.pool, option.endpoint.name, option.offered.name, option.offered.digest, degraded)

    def decide(self, ladder: _Options, reason: Reason, able: _Options) -> Decision:
        """Return the decision for the first of the ladder, everything else that is able behind the ladder."""
        taken = {o.endpoint.name for o in ladder}
        others = self._ordered([o for o in able if o.endpoint.name not in taken])
        choices = [self._choice(o) for o in (*ladder, *others)[: 1 + self.policy.alternatives]]
        rest = (c for c in choices[1:] if self.policy.degrade or not c.degraded or self.request.sensitive)
        return Decision(choices[0], reason, self.request.counted, self.policy.version, tuple(rest))


def _need(request: Request, policy: Policy) -> Reason | None:
    if request.priority is Priority.BATCH:
        return Reason.BATCH
    if (request.max_tokens or 0) >= policy.long_generation_tokens:
        return Reason.LONG_GENERATION
    if request.hint is Hint.LARGE:
        return Reason.HINT
    return Reason.LONG_PROMPT if request.prompt_tokens >= policy.tiny_prompt_tokens else None


def _suited(options: _Options) -> _Options:
    """Leave out what was tuned to another family, unless there is nothing else."""
    return [o for o in options if o.preference < 2] or options


def _pool(options: _Options, pool: Pool) -> list[Option]:
    return [o for o in options if o.pool is pool]
