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
from operator import attrgetter

from pipeline.catalog.names import Tier
from pipeline.peers.policy import Policy
from pipeline.peers.status import Pool
from pipeline.serving import affinity, capacity, ranking
from pipeline.serving.decision import Choice, Counted, Decision, Declined, Denied, Hint, Priority, Reason, Request
from pipeline.serving.ranking import Option
from pipeline.serving.snapshot import Snapshot

_SIZES = {tier: size for size, tier in enumerate(Tier)}


_Options = Sequence[Option]
_Rule = tuple[Denied, Callable[[Option], bool]]


def route(request: Request, snapshot: Snapshot, policy: Policy) -> Decision | Declined:
    """Return where a request goes, or why it is refused."""
    tier = Tier.MID_TIER if request.hint is Hint.MID else Tier.TINY_EDGE
    asked = _Asked(request, policy, _need(request, policy), tier)
    options: _Options = ranking.options(request, snapshot, policy)
    if not options:
        return Declined(Denied.NO_ENDPOINT)
    for denied, keep in asked.musts():
        options = list(filter(keep, options))
        if not options:
            return Declined(denied)
    bound = asked.bound(options)
    if bound is None:
        return Declined(Denied.CORE_DOWN, retry_after_s=1)
    loads = asked.loads()
    able = options
    for _, keep in loads:
        able = list(filter(keep, able))
    takers = able if bound is options else _pool(able, Pool.NVLINK)
    if not takers:
        return asked.declined(bound, loads)
    ladder, reason = asked.ladder(bound, takers)
    return asked.decide(ladder, reason, able)


@dataclass(slots=True)
class _Asked:
    """One question to routing, with what its rules need.

    `need` is why only the NVLink pool will do, if it is so; `tier` is what the edge should answer with.
    """

    request: Request
    policy: Policy
    need: Reason | None
    tier: Tier

    def musts(self) -> list[_Rule]:
        """What no load excuses."""
        request = self.request
        rules: list[_Rule] = []
        if request.sensitive:
            rules.append((Denied.NO_EDGE, lambda o: o.pool is Pool.EDGE))
        if request.variant is not None:
            rules.append((Denied.NO_VARIANT, lambda o: o.offered.name == request.variant))
        if request.counted is Counted.TOKENIZER:
            rules.append((Denied.TOO_LONG, self._fits))
        return rules

    def loads(self) -> list[_Rule]:
        """What a later try may meet."""
        policy, request = self.policy, self.request
        rules: list[_Rule] = [(Denied.OVERLOADED, _has_room)]
        if request.priority is Priority.BATCH:
            rules.append((Denied.BATCH_YIELDS, lambda o: capacity.is_free_for_batch(o.endpoint, o.load, policy)))
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
            before, options = options, list(filter(keep, options))
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
        edge = self._ordered(_suited(self._with_tier(able)))
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
        shared = self.request.affinity and len(idle) > 1 and len(self._equals(idle)) > 1
        return Reason.AFFINITY if shared else Reason.TINY_EDGE

    def _absent(self, bound: _Options) -> Reason:
        """Return why no edge endpoint of the tier is able."""
        loaded = self._with_tier(bound)
        if not loaded:
            return Reason.NOT_LOADED
        return Reason.DEADLINE if any(o.room for o in loaded) else Reason.QUEUE_WAIT

    def _ordered(self, options: _Options) -> list[Option]:
        """Return options from the best to the last; the session's own endpoint leads its equals."""
        if len(options) < 2:
            return list(options)
        order = sorted(options, key=_rank)
        if self.request.affinity is None:
            return order
        equals = self._equals(order)
        if len(equals) > 1:
            home = affinity.home(self.request.affinity, equals, self.policy)
            order.remove(home)
            order.insert(0, home)
        return order

    def _equals(self, order: _Options) -> list[Option]:
        """Return the options that nothing but load and distance within `near_ms` tells from the best."""
        best = order[0].kind  # a rank begins with its kind
        alike = [o for o in order if o.kind == best]
        furthest = min([o.endpoint.round_trip_ms for o in alike]) + self.policy.near_ms
        return [o for o in alike if o.endpoint.round_trip_ms <= furthest]

    def _with_tier(self, options: _Options) -> list[Option]:
        tier = self.tier
        return [o for o in options if o.offered.tier is tier and o.pool is Pool.EDGE]

    def _fits(self, option: Option) -> bool:
        limit = option.endpoint.context or option.offered.context
        return not limit or self.request.prompt_tokens + (self.request.max_tokens or 1) <= limit

    def _is_smaller(self, option: Option) -> bool:
        tier = option.offered.tier
        return tier is not self.tier and _SIZES[tier] < _SIZES[self.tier]

    def _choice(self, option: Option) -> Choice:
        pool, offered = option.pool, option.offered
        smaller = pool is Pool.EDGE and (self.need is not None or self._is_smaller(option))
        return Choice(
            pool, option.endpoint.name, offered.name, offered.digest, smaller and self.request.variant is None
        )

    def decide(self, ladder: _Options, reason: Reason, able: _Options) -> Decision:
        """Return the decision for the first of the ladder, everything else that is able behind the ladder."""
        others = self._ordered([o for o in able if o not in ladder]) if len(able) > len(ladder) else []
        choices = [self._choice(o) for o in (*ladder, *others)[: 1 + self.policy.alternatives]]
        first, *rest = choices
        if not (self.policy.degrade or self.request.sensitive):
            rest = [c for c in rest if not c.degraded]
        return Decision(first, reason, self.request.counted, self.policy.version, tuple(rest))


def _need(request: Request, policy: Policy) -> Reason | None:
    if request.priority is Priority.BATCH:
        return Reason.BATCH
    if (request.max_tokens or 0) >= policy.long_generation_tokens:
        return Reason.LONG_GENERATION
    if request.hint is Hint.LARGE:
        return Reason.HINT
    return Reason.LONG_PROMPT if request.prompt_tokens >= policy.tiny_prompt_tokens else None


_rank, _has_room = attrgetter("rank"), attrgetter("room")


def _suited(options: _Options) -> _Options:
    """Leave out what was tuned to another family, unless there is nothing else."""
    return [o for o in options if o.preference < 2] or options


def _pool(options: _Options, pool: Pool) -> list[Option]:
    return [o for o in options if o.pool is pool]
