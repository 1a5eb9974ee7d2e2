"""Requests as they arrive: drawn in blocks, in the order of their times.

Rules: a request's every random number is drawn with it and travels with it, so that two policies meet the same requests
on the same luck (common random numbers); times are seconds since the start. Arrivals are Poisson, their rate constant
over steps of ten seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.lab.simulation.scenario import Kind, Scenario, Spread

STEP_S = 10.0
_BLOCK = 8192  # requests, at least
_HOUR = 3600.0

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Row = tuple[float, int, int, int, int, int, float, float, float]  # of a block, in the order of its columns


@dataclass(frozen=True, slots=True)
class Block:
    """Columns of requests; `fresh` are a prompt's tokens beyond the common ones, `prompt_id` -1 where it is new.

    `luck` is standard normal and scales the work, `phase` uniform: into which part of a step a request falls; `way`
    exponential with mean 1, for the network.
    """

    at: list[float]
    site: list[int]
    kind: list[int]
    fresh: list[int]
    answer: list[int]
    prompt_id: list[int]
    luck: list[float]
    phase: list[float]
    way: list[float]

    def rows(self) -> Iterator[Row]:
        """Yield the requests."""
        return zip(
            self.at, self.site, self.kind, self.fresh, self.answer, self.prompt_id, self.luck, self.phase, self.way,
            strict=True,
        )  # fmt: skip


class Arrivals:
    """All requests of a scenario with a seed."""

    def __init__(self, scenario: Scenario, seed: int, most: int | None = None) -> None:
        """Prepare the sizes of sites, the bursts, and the prompts that come again; `most` arrive after the warm-up."""
        self._scenario, self._most = scenario, most
        self.until = scenario.hours * _HOUR
        streams = np.random.SeedSequence(seed).spawn(5)
        self._times, self._lengths, self._luck, bursts, sites = (np.random.default_rng(s) for s in streams)
        traffic = scenario.traffic
        sizes = (
            np.exp(sites.normal(0.0, traffic.skew, scenario.edge.sites))
            if traffic.skew
            else np.ones(scenario.edge.sites)
        )
        self._sizes: Floats = traffic.rate * sizes / sizes.mean()
        weights = np.asarray(traffic.hourly)
        self._hourly: Floats = weights / weights.mean()
        start = scenario.start
        self._offset = start.weekday() * 24 * _HOUR + start.hour * _HOUR + start.minute * 60.0 + start.second
        self._bursts = list(_bursts(scenario, self.until, bursts))
        kinds = list(traffic.kinds.values())
        shares = np.asarray([k.share for k in kinds])
        self._kinds, self._shares = kinds, np.cumsum(shares / shares.sum())
        self._known = [_Known.of(k, sites) for k in kinds]

    def rate(self, at: float) -> Floats:
        """Return the requests a second of each site at a time."""
        hour = int((self._offset + at) // _HOUR) % len(self._hourly)
        rates = self._sizes * self._hourly[hour]
        for start, end, factor, where in self._bursts:
            if start <= at < end:
                rates = np.where(where, rates * factor, rates)
        return np.asarray(rates, np.float64)

    def blocks(self) -> Iterator[Block]:
        """Yield requests until the end, or until there were as many as asked for."""
        for columns in self.columns():
            yield Block(*(c.tolist() for c in columns))

    def columns(self) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield the same as arrays, in the order of a block's columns."""
        left, times, sites, held, counted = self._most, [], [], 0, 0
        at, warm = 0.0, self._scenario.warmup_s
        while at < self.until and left != 0:
            step = min(STEP_S, self.until - at)
            counts = self._times.poisson(self.rate(at) * step)
            when = at + step * self._times.random(int(counts.sum()))
            order = np.argsort(when, kind="stable")
            times.append(when[order])
            sites.append(np.repeat(np.arange(len(counts)), counts)[order])
            held, counted, at = held + len(order), counted + int((when >= warm).sum()), at + step
            if held >= _BLOCK or at >= self.until or (left is not None and counted >= left):
                end = None if left is None else held - counted + left
                drawn = self._drawn(np.concatenate(times)[:end], np.concatenate(sites)[:end])
                left = None if left is None else max(left - counted, 0)
                times, sites, held, counted = [], [], 0, 0
                yield drawn

    def _drawn(self, at: Floats, site: Ints) -> tuple[NDArray[Any], ...]:
        n = len(at)
        kind = np.searchsorted(self._shares, self._lengths.random(n), side="right").clip(max=len(self._kinds) - 1)
        fresh, answer, prompt = np.ones(n, np.int64), np.ones(n, np.int64), np.full(n, -1, np.int64)
        first = 0
        for number, (spec, known) in enumerate(zip(self._kinds, self._known, strict=True)):
            here = np.flatnonzero(kind == number)
            if spec.distinct:
                rank = known.draw(len(here), self._lengths)
                fresh[here] = known.lengths[rank]
                prompt[here] = first + site[here] * spec.distinct + rank
                first += spec.distinct * len(self._sizes)
            else:
                fresh[here] = _tokens(spec.prompt, len(here), self._lengths)
            tokens = _tokens(spec.answer, len(here), self._lengths)
            answer[here] = tokens if spec.max_tokens is None else tokens.clip(max=spec.max_tokens)
        luck, phase, way = self._luck.standard_normal(n), self._luck.random(n), self._luck.standard_exponential(n)
        return at, site, kind, fresh, answer, prompt, luck, phase, way


@dataclass(frozen=True, slots=True)
class _Known:
    """Prompts that come again: their lengths, and how often each is asked."""

    lengths: Ints
    sums: Floats

    @classmethod
    def of(cls, kind: Kind, rng: np.random.Generator) -> _Known:
        ranks = np.arange(1, kind.distinct + 1, dtype=np.float64)
        sums = np.cumsum(ranks**-kind.zipf)
        lengths = _tokens(kind.prompt, kind.distinct, rng)
        return cls(lengths, sums / sums[-1] if len(sums) else sums)

    def draw(self, n: int, rng: np.random.Generator) -> Ints:
        found = np.searchsorted(self.sums, rng.random(n), side="right")
        return np.asarray(found.clip(max=len(self.sums) - 1), np.int64)


def _tokens(spread: Spread, n: int, rng: np.random.Generator) -> Ints:
    """Draw lengths in whole tokens, at least one."""
    if spread.median is not None:
        values = spread.median * np.exp(spread.sigma * rng.standard_normal(n))
    elif spread.mean is not None:
        values = spread.mean * rng.standard_exponential(n)
    else:
        values = np.full(n, spread.fixed or 1.0)
    return np.maximum(np.rint(values), 1).astype(np.int64)


def _bursts(
    scenario: Scenario, until: float, rng: np.random.Generator
) -> Iterator[tuple[float, float, float, NDArray[np.bool_]]]:
    for burst in scenario.traffic.bursts:
        count = max(int((until - burst.first_s) // burst.every_s) + 1, 0)
        for number in range(count):
            start = burst.first_s + number * burst.every_s + burst.jitter_s * (2 * rng.random() - 1)
            where = rng.random(scenario.edge.sites) < burst.sites
            yield start, start + burst.lasts_s, burst.factor, where
