"""How many replicas each pool is to have.

Rules, each of which a test states:
- up at once, by `up_step` or twice as many, with `up_s` between; what is still coming is waited for;
- down only after fewer were enough for `down_s`, to the most that was needed in that time, `down_step` at a time;
- none only where nobody asked for `idle_s` and nobody is expected to;
- what is expected is warmed before it is needed, and nothing that is expected soon is let go;
- what is unknown takes nothing away, and what is known of the demand may ask for more;
- replicas stay within a pool's bounds and all pools within the cost cap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from pipeline.control.actions import PreWarm, Reason, Scale
from pipeline.control.demand import Load, replicas
from pipeline.control.memory import Sizing
from pipeline.control.settings import PoolSettings, Scaling
from pipeline.control.state import Expected, Pool


@dataclass(frozen=True, slots=True)
class Wish:
    """The replicas a pool wants, why, and in numbers."""

    replicas: int
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """One pool as it is sized: its workload, its load, what is expected, and how fast the global objective burns.

    `follows` says that the workload is not scaled from here, but by an autoscaler that comes after in its own time.
    """

    pool: PoolSettings
    seen: Pool
    load: Load
    expected: Expected | None = None
    burn: float | None = None
    follows: bool = False

    def enough(self, qps: float | None, share: float, scaling: Scaling) -> int | None:
        """Return the replicas for so many requests a second, at a share of the slots; None where that is unknown."""
        if qps is None:
            return None
        return replicas(self.pool, qps, self.load.waiting or 0, share, scaling.drain_s)

    def ahead(self, scaling: Scaling) -> int | None:
        """Return the replicas for what is expected; None where nothing is known of it."""
        if self.expected is None:
            return None
        return replicas(self.pool, self.expected.qps, 0, scaling.target, scaling.drain_s)


def size(view: View, before: Sizing | None, scaling: Scaling, now: float) -> tuple[Sizing, Wish]:
    """Return what is kept of a pool, and the replicas it wants before the cost cap."""
    before = before or Sizing(view.pool.least if view.seen.replicas is None else view.seen.replicas)
    was, kept = _was(view, before, scaling, now), _idle(before, view.load, now)
    more = _more(view, was, scaling)
    if more is None or more.replicas <= was:
        return _fewer(view, was, kept, scaling, now)
    kept = replace(kept, low_since=None)
    if kept.up_at is not None and now - kept.up_at < scaling.up_s and was > 0:
        return kept, Wish(was, kept.reason, "a step up is on its way")
    most = min(max(was + scaling.up_step, was * 2), view.pool.most)
    return kept, replace(more, replicas=max(min(more.replicas, most), min(was, view.pool.most)))


def _was(view: View, before: Sizing, scaling: Scaling, now: float) -> int:
    """Return the replicas to go out from: those asked for, while they may not show yet, else those there are."""
    if view.seen.replicas is None or view.follows:
        return before.wanted
    asked_at = max((at for at in (before.up_at, before.down_at) if at is not None), default=None)
    settling = asked_at is not None and now - asked_at < scaling.settle_s
    return before.wanted if settling else view.seen.replicas


def _idle(before: Sizing, load: Load, now: float) -> Sizing:
    if load.idle:
        return before if before.idle_since is not None else replace(before, idle_since=now)
    return replace(before, idle_since=None)


def _more(view: View, was: int, scaling: Scaling) -> Wish | None:
    """Return the largest of the wishes for more; None where nothing is known."""
    return max(_wishes(view, was, scaling), key=lambda w: w.replicas, default=None)


def _wishes(view: View, was: int, scaling: Scaling) -> Iterator[Wish]:
    load, seen = view.load, view.seen
    needed = view.enough(load.least_qps, scaling.target, scaling)
    if was < view.pool.least:
        yield Wish(view.pool.least, Reason.BOUNDS, f"at least {view.pool.least}")
    if needed is not None:
        yield Wish(needed, Reason.DEMAND, f"{load.least_qps or 0:.1f} requests/s, {load.waiting or 0} waiting")
    ahead = view.ahead(scaling)
    if ahead is not None and view.expected is not None:
        yield Wish(ahead, Reason.EXPECTED, f"{view.expected.qps:.1f} requests/s expected")
    if seen.ready is None or seen.ready < was or was == 0:
        return  # what is still coming may be enough
    if load.queue_wait_ms is not None and load.queue_wait_ms > scaling.queue_wait_ms:
        yield Wish(was + 1, Reason.QUEUE_WAIT, f"{load.queue_wait_ms:.0f} ms at the idlest server")
    if view.burn is not None and view.burn > scaling.burn and load.waiting:
        yield Wish(was + 1, Reason.SLO_BURN, f"global_p95 burns at {view.burn:.1f}, {load.waiting} waiting")
    if load.broken and needed is not None:
        yield Wish(needed + load.broken, Reason.NVLINK_DOWN, f"{load.broken} without whole NVLink")


def _fewer(view: View, was: int, kept: Sizing, scaling: Scaling, now: float) -> tuple[Sizing, Wish]:
    if was > view.pool.most:
        return kept, Wish(view.pool.most, Reason.BOUNDS, f"at most {view.pool.most}")
    needed = _calm(view, kept, scaling, now)
    if needed is None or needed >= was:
        return replace(kept, low_since=None), Wish(was, kept.reason)
    since = kept.low_since
    if since is None:
        return replace(kept, low_since=now, low_most=needed), Wish(was, kept.reason)
    kept = replace(kept, low_most=max(kept.low_most, needed))
    if now - since < scaling.down_s:
        return kept, Wish(was, kept.reason)
    to = max(kept.low_most, was - scaling.down_step)
    reason = Reason.COLD if to == 0 else Reason.LOW_DEMAND
    return replace(kept, low_since=None), Wish(to, reason, f"{kept.low_most} were enough for {scaling.down_s:.0f} s")


def _calm(view: View, kept: Sizing, scaling: Scaling, now: float) -> int | None:
    """Return the replicas that are enough with room to spare; None where that is unknown."""
    needed = view.enough(view.load.qps, scaling.calm, scaling)
    if needed is None or view.load.waiting is None:
        return None
    needed = max(needed, view.ahead(scaling) or 0)
    cold = kept.idle_since is not None and now - kept.idle_since >= scaling.idle_s
    return max(needed + view.load.broken, view.pool.least, 0 if cold and needed == 0 else 1)


def affordable(wishes: Mapping[str, Wish], pools: Iterable[PoolSettings], cap_usd_h: float) -> dict[str, Wish]:
    """Return the wishes that all pools together can pay for, those of a higher rank first; never below `least`."""
    ordered = sorted(pools, key=lambda p: (-p.rank, p.name))
    left = cap_usd_h - sum(p.least * p.usd_h for p in ordered)
    found: dict[str, Wish] = {}
    for pool in ordered:
        wish, extra = wishes[pool.name], max(wishes[pool.name].replicas - pool.least, 0)
        paid = extra if not pool.usd_h else min(extra, max(int(left / pool.usd_h), 0))
        left -= paid * pool.usd_h
        if paid < extra:
            wish = Wish(
                pool.least + paid, Reason.COST_CAP, f"{wish.replicas} are wanted, the cap is {cap_usd_h:g} USD/h"
            )
        found[pool.name] = wish
    return found


def scale(view: View, wish: Wish, kept: Sizing, now: float) -> tuple[Sizing, Scale | PreWarm | None]:
    """Return what is kept of a pool, and what brings it to a wish, where it is not there."""
    if wish.replicas != kept.wanted:
        up_at, down_at = (now, kept.down_at) if wish.replicas > kept.wanted else (kept.up_at, now)
        kept = replace(kept, wanted=wish.replicas, reason=wish.reason, up_at=up_at, down_at=down_at)
    was = view.seen.replicas
    if was is None or was == wish.replicas:
        return kept, None
    kind = PreWarm if wish.reason is Reason.EXPECTED else Scale
    return kept, kind(view.pool.name, wish.replicas, was, wish.reason, wish.detail)
