"""A scenario: a fleet, its network, its traffic, its faults, and who decides. One YAML file.

Rules: every number has its unit here; what is not given is absent, no fault happens by default; a file with an unknown
key is refused.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.resources import files
from math import exp, log
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from pipeline.catalog.document import Document, parse_yaml
from pipeline.catalog.names import Variant
from pipeline.control.settings import Settings
from pipeline.errors import CatalogError
from pipeline.lab.simulation.figures import Figures, named, published
from pipeline.peers.policy import Policy
from pipeline.serving.decision import Hint, Priority

Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Served = Annotated[str, AfterValidator(lambda name: Variant.parse(name).name)]
_Z95 = 1.6449


class Spread(Document):
    """A distribution: one value, log-normal by median and 95th percentile, or exponential by its mean."""

    fixed: Annotated[Positive | None, Field(description="always this")] = None
    median: Annotated[Positive | None, Field(description="of a log-normal one, with `p95`")] = None
    p95: Annotated[Positive | None, Field(description="95th percentile of a log-normal one")] = None
    mean: Annotated[Positive | None, Field(description="of an exponential one")] = None

    @model_validator(mode="after")
    def _one(self) -> Spread:
        forms = self.fixed is not None, self.median is not None and self.p95 is not None, self.mean is not None
        if sum(forms) != 1 or (self.median is None) != (self.p95 is None):
            raise ValueError("give fixed, or median and p95, or mean")
        if self.median is not None and self.p95 is not None and self.p95 < self.median:
            raise ValueError("p95 is less than the median")
        return self

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm, of a log-normal one."""
        return log(self.p95 / self.median) / _Z95 if self.median and self.p95 else 0.0

    @property
    def average(self) -> float:
        """The mean."""
        if self.median is not None:
            return self.median * exp(self.sigma**2 / 2)
        return self.fixed or self.mean or 0.0


class Kind(Document):
    """One kind of request."""

    share: Annotated[Positive, Field(description="of all requests, beside the other kinds' shares")]
    prompt: Annotated[Spread, Field(description="tokens that are its own")]
    common: Annotated[
        int, Field(ge=0, description="tokens of every prompt that every server keeps: template, system prompt")
    ] = 0
    answer: Annotated[Spread, Field(description="tokens")]
    max_tokens: Annotated[int | None, Field(ge=1, description="that the request allows; none: it says nothing")] = None
    distinct: Annotated[int, Field(ge=0, description="prompts that come again and again; 0: each is new")] = 0
    zipf: Annotated[Amount, Field(description="exponent of Zipf's law that they come by")] = 1.0
    hint: Annotated[Hint, Field(description="size of model that is asked for")] = Hint.AUTO
    sensitive: Annotated[bool, Field(description="whether it must not leave the edge")] = False
    priority: Annotated[Priority, Field(description="batch takes what interactive leaves")] = Priority.INTERACTIVE
    deadline_ms: Annotated[Positive | None, Field(description="ms for the whole answer; none: any time")] = None
    stream: Annotated[bool, Field(description="whether an answer counts from its first token, else as a whole")] = True


class Burst(Document):
    """More traffic for a while, again and again: every `every_s`, at `first_s`, give or take `jitter_s`."""

    every_s: Annotated[Positive, Field(description="s from one to the next")]
    first_s: Annotated[Amount, Field(description="s until the first")] = 0.0
    jitter_s: Annotated[Amount, Field(description="s that each comes earlier or later, at most")] = 0.0
    lasts_s: Annotated[Positive, Field(description="s that each lasts")]
    factor: Annotated[float, Field(ge=0, le=1000, description="times the traffic of that hour")]
    sites: Annotated[Share, Field(description="share of the sites that have it, drawn anew each time")] = 1.0


class Traffic(Document):
    """Requests of one site."""

    rate: Annotated[float, Field(gt=0, le=10_000, description="requests a second in the mean")]
    hourly: Annotated[
        list[Amount], Field(description="24 weights of a day's hours, or 168 of a week's from Monday 00:00 UTC")
    ] = Field(default_factory=lambda: [1.0] * 24)
    skew: Annotated[float, Field(ge=0, le=5, description="standard deviation of the logarithm of a site's size")] = 0.0
    bursts: list[Burst] = Field(default_factory=list)
    kinds: Annotated[dict[str, Kind], Field(min_length=1, description="by name")]

    @model_validator(mode="after")
    def _week(self) -> Traffic:
        if len(self.hourly) not in {24, 168} or not sum(self.hourly):
            raise ValueError("hourly has 24 or 168 weights, from Monday 00:00 UTC, not all 0")
        return self


class Edge(Document):
    """Sites, each with a gateway and its nodes."""

    sites: Annotated[int, Field(ge=1, description="each with a gateway of its own")] = 1
    nodes: Annotated[int, Field(ge=0, description="of each site")] = 4
    figures: Annotated[str, Field(description="what machine a node is: of `figures`, or published ones")] = "pi5"
    variant: Annotated[Served, Field(description="what it serves")] = "tiny-edge-arm64"
    round_trip_ms: Annotated[Amount, Field(description="ms between gateway and node")] = 1.5
    jitter_ms: Annotated[Amount, Field(description="mean of what is added to a round trip, exponential")] = 0.5


class Core(Document):
    """NVLink pools; sites belong to one each, in turn."""

    pools: Annotated[int, Field(ge=1, description="of large servers")] = 1
    replicas: Annotated[int, Field(ge=0, description="of each pool at the start, ready")] = 1
    most: Annotated[int, Field(ge=1, le=64, description="replicas of each pool, at any time")] = 4
    figures: Annotated[str, Field(description="what machine a replica is: of `figures`, or published ones")] = (
        "nvlink-4"
    )
    variant: Annotated[Served, Field(description="what it serves")] = "large-x86_64"
    round_trip_ms: Annotated[Amount, Field(description="ms between gateway and replica")] = 18.0
    jitter_ms: Annotated[Amount, Field(description="mean of what is added to a round trip, exponential")] = 3.0
    cold_start_s: Annotated[Amount, Field(description="s from asking for a replica to its first answer")] = 180.0

    @model_validator(mode="after")
    def _room(self) -> Core:
        if self.replicas > self.most:
            raise ValueError("replicas are more than most")
        return self


class Faults(Document):
    """What breaks."""

    node_hours: Annotated[
        Positive | None, Field(description="mean hours between two failures of a node; none: it never fails")
    ] = None
    repair_s: Annotated[Positive, Field(description="s that a node is gone")] = 300.0
    partition_hours: Annotated[
        Positive | None, Field(description="mean hours between two cuts of a site's way to the core; none: no cut")
    ] = None
    partition_s: Annotated[Positive, Field(description="s that the way is cut")] = 60.0
    core_down: Annotated[
        list[tuple[Amount, Amount]], Field(description="(start, end) in s: no site reaches any pool")
    ] = Field(default_factory=list)

    @model_validator(mode="after")
    def _forwards(self) -> Faults:
        if any(start >= end for start, end in self.core_down):
            raise ValueError("core_down has a start that is not before its end")
        return self


def _utc(start: datetime) -> datetime:
    if not 1900 <= start.year < 2100:
        raise ValueError("a start is between 1900 and 2100")
    return start.astimezone(UTC)


class Scenario(Document):
    """A fleet, its network, its traffic, its faults, and who decides."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(description="shown in results")]
    about: Annotated[str, Field(description="a sentence, shown in results")]
    start: Annotated[
        AwareDatetime, AfterValidator(_utc), Field(description="with its offset from UTC: traffic follows UTC's hour")
    ]
    hours: Annotated[Positive, Field(description="that are simulated")]
    warmup_s: Annotated[Amount, Field(description="s at the start that are simulated but not reported")] = 0.0
    edge: Edge = Field(default_factory=Edge)
    core: Annotated[Core | None, Field(description="the NVLink pools; none: the edge is alone")] = None
    traffic: Traffic
    faults: Faults = Field(default_factory=Faults)
    policy: Policy = Field(default_factory=Policy)
    controller: Annotated[
        Settings | None, Field(description="with one pool, whose policy counts; none: nobody steers")
    ] = None
    history_days: Annotated[
        float,
        Field(ge=0, le=3650, description="days before the start that the controller has seen, to foresee by; 0: none"),
    ] = 0.0
    tick_s: Annotated[Positive, Field(description="s between two looks of a controller")] = 15.0
    poll_s: Annotated[Positive, Field(description="s between two looks of a gateway at its servers")] = 1.0
    figures: Annotated[dict[str, Figures], Field(description="machines beside the published ones, by name")] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _one_pool(self) -> Scenario:
        if self.controller is not None and (self.core is None or len(self.controller.pools) != 1):
            raise ValueError("a controller has one pool, and a core to control")
        return self

    @property
    def first_policy(self) -> Policy:
        """The policy in force at the start."""
        return self.controller.policy if self.controller else self.policy

    def speeds(self, name: str) -> Figures:
        """Return figures of this scenario, or published ones."""
        return named({**published(), **self.figures}, name)

    def steered(self, policy: Policy) -> Scenario:
        """Return it with another policy, which its controller keeps to as well."""
        if self.controller is None:
            return self.changed(policy=policy)
        settings = Settings.model_validate({**dict(self.controller), "policy": policy})
        return self.changed(policy=policy, controller=settings)

    def unforeseeing(self) -> Scenario:
        """Return it with a controller that only reacts."""
        if self.controller is None:
            return self
        forecast = self.controller.forecast.model_copy(update={"enabled": False})
        return self.changed(controller=self.controller.model_copy(update={"forecast": forecast}), history_days=0.0)

    def changed(self, **values: object) -> Scenario:
        """Return it with other values, checked."""
        return Scenario.model_validate({**dict(self), **values})


def shipped() -> list[str]:
    """Return the names of the scenarios that come with the package."""
    folder = files(__package__) / "scenarios"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load(name: str) -> Scenario:
    """Return a scenario by its name or file; raises CatalogError."""
    if name in shipped():
        text = (files(__package__) / "scenarios" / f"{name}.yaml").read_text(encoding="utf-8")
        return parse_yaml(text, Scenario, f"{name}.yaml")
    try:
        return parse_yaml(Path(name).read_text(encoding="utf-8"), Scenario, name)
    except (OSError, UnicodeDecodeError) as e:
        raise CatalogError(f"no scenario {name!r}", hint=f"name a file, or one of {', '.join(shipped())}") from e
