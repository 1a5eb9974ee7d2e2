"""`controller.yaml`: pools, policy, and every number that is decided by.

Rules: every number has its unit and reason here; a file without a key gets the default, one with an unknown key is
refused; what leads into a mode lies apart from what leads out of it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.catalog.document import Document, parse_yaml
from pipeline.control.calendar import Window
from pipeline.control.forecast import Forecast
from pipeline.control.memory import Mode
from pipeline.peers.policy import Policy

Seconds = Annotated[float, Field(ge=0, le=31 * 86400)]
Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]


class PoolSettings(Document):
    """One workload of large servers; the variants it serves are what its demand is counted by."""

    name: Annotated[Name, Field(description="as metrics and the decision log call it")]
    variants: Annotated[list[str], Field(description="what it serves; their requests are its demand")] = Field(
        default_factory=lambda: ["large-x86_64"]
    )
    namespace: Annotated[Name, Field(description="of the workload")] = "edge-release"
    kind: Annotated[Literal["Deployment", "StatefulSet"], Field(description="of the workload")] = "StatefulSet"
    workload: Annotated[Name, Field(description="name of what is scaled")] = "large"
    least: Annotated[int, Field(ge=0, description="replicas; 0 lets a cold model go")] = 0
    most: Annotated[int, Field(ge=1, le=1000, description="replicas; what the site has GPUs for")] = 4
    slots: Annotated[int, Field(ge=1, description="requests a replica decodes at once without slowing down")] = 8
    service_s: Annotated[float, Field(gt=0, description="s a request holds a slot, from the evidence")] = 1.0
    cold_start_s: Annotated[Seconds, Field(description="s from asking for a replica to its first answer")] = 180.0
    gpus: Annotated[int, Field(ge=0, description="GPUs of a replica, on one host: the tensor-parallel degree")] = 4
    usd_h: Annotated[float, Field(ge=0, description="USD an hour a replica costs")] = 8.0
    rank: Annotated[int, Field(description="pools of a higher rank keep their replicas under the cost cap")] = 0
    missed: Annotated[
        bool, Field(description="whether what gateways could not send to the NVLink pool was meant for this pool")
    ] = True

    @model_validator(mode="after")
    def _ordered(self) -> PoolSettings:
        if self.least > self.most:
            raise ValueError("least is more than most")
        return self


class Scaling(Document):
    """Replicas. Up at once, down slowly: a cold start costs minutes of missed promises, a warm replica cents."""

    target: Annotated[Share, Field(description="share of slots in use that replicas are asked for")] = 0.7
    calm: Annotated[Share, Field(description="share of slots in use that fewer replicas must not exceed")] = 0.55
    queue_wait_ms: Annotated[float, Field(gt=0, description="ms; who waits longer needs one replica more")] = 500.0
    burn: Annotated[float, Field(gt=0, description="burn rate of global_p95 that asks for one replica more")] = 6.0
    drain_s: Annotated[float, Field(gt=0, description="s within which waiting requests are to be worked off")] = 30.0
    up_s: Annotated[Seconds, Field(description="s between two steps up: what was asked for shows by then")] = 30.0
    down_s: Annotated[
        Seconds, Field(description="s that fewer must have been enough; longer than bursts are apart")
    ] = 300.0
    settle_s: Annotated[Seconds, Field(description="s within which what was asked for must show in the cluster")] = 60.0
    up_step: Annotated[int, Field(ge=1, description="replicas more at a time, or as many as there are")] = 4
    down_step: Annotated[int, Field(ge=1, description="replicas fewer at a time")] = 2
    idle_s: Annotated[Seconds, Field(description="s without a request after which a model is cold")] = 900.0

    @model_validator(mode="after")
    def _apart(self) -> Scaling:
        if self.calm >= self.target:
            raise ValueError("calm must be less than target, or replicas come and go")
        return self


class Routing(Document):
    """When a gateway is told to prefer another pool. Each pair is a way in and a way out."""

    busy: Annotated[Share, Field(description="share of a site's nodes that are busy; above it, offload sooner")] = 0.6
    calm: Annotated[Share, Field(description="share of busy nodes below which the edge is calm again")] = 0.3
    burn: Annotated[float, Field(gt=0, description="burn rate of edge_p95 above which to offload sooner")] = 3.0
    burn_calm: Annotated[float, Field(gt=0, description="burn rate below which the edge is calm again")] = 1.0
    far: Annotated[float, Field(gt=0, description="of core_far_ms; beyond it the edge is preferred though busy")] = 1.0
    near: Annotated[float, Field(gt=0, description="of core_far_ms; within it the core is near again")] = 0.8
    known: Annotated[Share, Field(description="share of a site's nodes that must be known to judge it")] = 0.5
    confirm_s: Annotated[Seconds, Field(description="s a reason must last: one slow scrape is none")] = 30.0
    pause_s: Annotated[Seconds, Field(description="s between two changes of a gateway's mode")] = 180.0
    foreign_s: Annotated[Seconds, Field(description="s that a policy pushed by somebody else is left alone")] = 1800.0

    @model_validator(mode="after")
    def _apart(self) -> Routing:
        if self.calm >= self.busy or self.burn_calm >= self.burn or self.near >= self.far:
            raise ValueError("calm, burn_calm and near must be less than busy, burn and far")
        return self


class Eviction(Document):
    """Batch pods that yield to a burst."""

    enabled: Annotated[bool, Field(description="whether pods are evicted at all")] = True
    namespaces: Annotated[list[Name], Field(description="where batch pods run that may be evicted")] = Field(
        default_factory=lambda: ["edge-release"]
    )
    label: Annotated[str, Field(description="label=value of pods that may yield")] = "edge-release.dev/yields=true"
    below: Annotated[int, Field(description="pod priority; only pods below it are asked to go")] = 0
    most: Annotated[int, Field(ge=1, description="pods a round")] = 2
    pause_s: Annotated[Seconds, Field(description="s between two rounds: a pod needs time to end")] = 60.0


class GatewayEntry(Document):
    """One gateway: the address of its admin port, and the site whose nodes stand behind it."""

    name: Annotated[str, Field(description="as metrics and the decision log call it")]
    url: Annotated[str, Field(pattern=r"^https?://[^/@\s]+$", description="such as https://gateway.local:8089")]
    site: Annotated[
        str, Field(description="the site of its nodes, as their label `site` says; empty: they have none")
    ] = ""
    every: Annotated[bool, Field(description="whether each of its host's addresses is a gateway")] = False
    tls_name: Annotated[str | None, Field(description="the name in its certificate, if not the host of `url`")] = None


class Looking(Document):
    """How the fleet is looked at."""

    round_s: Annotated[float, Field(ge=1, le=600, description="s between two decisions")] = 15.0
    rate_s: Annotated[float, Field(ge=1, le=600, description="s that rates are of: shorter ones jump")] = 60.0
    burn_requests: Annotated[
        int, Field(ge=1, description="requests of five minutes below which a burn rate is chance, and unknown")
    ] = 50
    answer_s: Annotated[float, Field(gt=0, le=60, description="s that one answer may take; then it is unknown")] = 5.0
    answer_bytes: Annotated[int, Field(ge=1024, description="bytes of an answer; 10,000 nodes: 4 MB")] = 16 << 20
    at_once: Annotated[int, Field(ge=1, le=1024, description="questions under way")] = 64


class Acting(Document):
    """Who does what was decided."""

    actor: Annotated[
        Literal["controller", "autoscaler"],
        Field(description="who scales pools: this controller, or a HPA or KEDA by edge_controller_desired_replicas"),
    ] = "controller"
    lease_s: Annotated[float, Field(ge=2, le=600, description="s of a leader's silence until another leads")] = 15.0
    log_bytes: Annotated[int, Field(ge=1 << 16, description="bytes of a decision log until it is put aside")] = 64 << 20
    logs: Annotated[int, Field(ge=1, le=100, description="logs put aside that are kept")] = 4


class Settings(Document):
    """`controller.yaml`."""

    schema_version: Literal[1] = 1
    gateways: list[GatewayEntry] = Field(default_factory=list)
    prometheus: Annotated[str | None, Field(description="address of a Prometheus to ask instead of each server")] = None
    looking: Looking = Field(default_factory=Looking)
    acting: Acting = Field(default_factory=Acting)
    forecast: Forecast = Field(default_factory=Forecast)
    pools: list[PoolSettings] = Field(default_factory=lambda: [PoolSettings(name="nvlink")])
    policy: Policy = Field(default_factory=lambda: Policy(version=1))
    modes: Annotated[
        dict[Mode, dict[str, bool | int | float]],
        Field(description="keys of `policy` that a mode changes: `offload` and `edge_first`"),
    ] = Field(
        default_factory=lambda: {
            Mode.OFFLOAD: {"queue_wait_ms": 50.0, "cpu": 0.65, "long_generation_tokens": 128},
            Mode.EDGE_FIRST: {"queue_wait_ms": 400.0, "cpu": 0.95},
        }
    )
    scaling: Scaling = Field(default_factory=Scaling)
    routing: Routing = Field(default_factory=Routing)
    eviction: Eviction = Field(default_factory=Eviction)
    cost_cap_usd_h: Annotated[float, Field(gt=0, description="USD an hour that all pools together may cost")] = 1000.0
    windows: list[Window] = Field(default_factory=list)

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        for what, names in (("pools", [p.name for p in self.pools]), ("gateways", [g.name for g in self.gateways])):
            if len(set(names)) != len(names):
                raise ValueError(f"two {what} have the same name")
        if Mode.NORMAL in self.modes:
            raise ValueError("modes.normal is the policy itself")
        for mode in Mode:
            self.policy_of(mode, 1)
        return self

    def policy_of(self, mode: Mode, version: int) -> Policy:
        """Return a mode's policy with a version."""
        given = {**self.policy.model_dump(), **self.modes.get(mode, {}), "version": version}
        return Policy.model_validate(given)


def parse_settings(text: str, name: str) -> Settings:
    """Return the settings written in YAML; raises CatalogError, which names the key."""
    return parse_yaml(text, Settings, name)
