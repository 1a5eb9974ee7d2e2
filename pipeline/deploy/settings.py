"""`deploy.yaml`: what a site adds to a release.

Rules: every number has its unit and reason here; a file without a key gets the default, one with an unknown key is
refused; an image is named by its digest.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.catalog.document import Document, parse_yaml
from pipeline.catalog.names import Target, Tier, Variant

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Image = Annotated[str, Field(pattern=r"^[a-z0-9][a-zA-Z0-9./_:-]*@sha256:[0-9a-f]{64}$")]
Url = Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Share = Annotated[float, Field(gt=0, le=1)]
Replicas = Annotated[int, Field(ge=1, le=5000)]
Keys = dict[str, object]
Component = Literal["admission", "certificates", "hpa", "keda", "scheduler"]
COMPONENTS: list[Component] = ["admission", "certificates"]


class Edge(Document):
    """The Pis: one server on each."""

    replicas: Annotated[Replicas, Field(description="Pis that serve")] = 3
    tier: Annotated[Tier, Field(description="what they serve")] = Tier.TINY_EDGE
    target: Annotated[Target, Field(description="what boards they are")] = Target.ARM64
    slots: Annotated[int, Field(ge=1, le=64, description="requests a Pi decodes at once")] = 2
    context: Annotated[int, Field(ge=256, description="tokens of each slot")] = 2048
    cpu: Annotated[str, Field(pattern=r"^[0-9]+m?$", description="processors that a Pi must have free")] = "2"
    storage: Annotated[
        Name | None,
        Field(description="StorageClass of the disk that outlives a pod, local-path on k3s; none: it does not"),
    ] = None
    disk: Annotated[str, Field(pattern=r"^[0-9]+[GM]i$", description="of that disk: two releases")] = "16Gi"

    @property
    def variant(self) -> Variant:
        return Variant(self.tier, self.target)


class Large(Document):
    """The NVLink pool; a release without the large tier has none."""

    replicas: Annotated[
        Replicas | None,
        Field(description="servers; none: one at first, then what the controller or an autoscaler says"),
    ] = None
    most: Annotated[Replicas, Field(description="servers that gateways know of, running or not")] = 4
    target: Annotated[Target, Field(description="processors of the GPU hosts")] = Target.X86_64
    storage: Annotated[
        Name | None, Field(description="StorageClass of the disk that outlives a pod; none: it does not")
    ] = None
    disk: Annotated[str, Field(pattern=r"^[0-9]+[GM]i$", description="of that disk: two releases")] = "200Gi"

    @property
    def variant(self) -> Variant:
        return Variant(Tier.LARGE, self.target)

    @model_validator(mode="after")
    def _within(self) -> Large:
        if self.replicas and self.replicas > self.most:
            raise ValueError("replicas is more than most")
        return self


class Gate(Document):
    """A promise that a step must keep: the largest value of a PromQL query is at most `most`."""

    name: Annotated[Name, Field(description="as reasons call it")]
    query: Annotated[str, Field(min_length=1, description="PromQL; several series may come")]
    most: Annotated[float, Field(description="that the largest of them may be")]


# Burn rate 6 over five minutes would call someone (docs/telemetry.md).
GATES = [
    Gate(name="burn-edge-p95", query='slo:burn:5m{slo="edge_p95"}', most=6.0),
    Gate(name="burn-global-p95", query='slo:burn:5m{slo="global_p95"}', most=6.0),
    Gate(name="burn-availability", query='slo:burn:5m{slo="availability"}', most=6.0),
    Gate(name="refused", query="sum(increase(edge_node_refused_releases_total[5m])) or vector(0)", most=0.0),
]


class Canary(Document):
    """How a release takes over: one Pi, then a share of them, then all, then the NVLink pool."""

    share: Annotated[Share, Field(description="of the Pis in the second step")] = 0.25
    soak_s: Annotated[
        float, Field(ge=0, le=86400, description="s that a step must keep its promises; the rules' shortest window")
    ] = 300.0
    patience_s: Annotated[Seconds, Field(description="s until another of a step's servers must answer")] = 900.0
    look_s: Annotated[Seconds, Field(description="s between two looks at the cluster")] = 2.0
    judge_s: Annotated[Seconds, Field(description="s between two rounds of golden prompts and figures")] = 30.0
    prompts: Annotated[int, Field(ge=1, le=50, description="golden prompts of each family asked in a round")] = 1
    right: Annotated[Share, Field(description="of the answers must be those the evidence has")] = 0.95
    gates: Annotated[
        list[Gate],
        Field(description="promises of each step; by default no objective burns faster than 6, and no node refuses"),
    ] = Field(default_factory=lambda: GATES)


class Door(Document):
    """How the deploy job reaches the gateway and Prometheus."""

    url: Annotated[Url, Field(description="where clients ask")]
    status: Annotated[Url | None, Field(description="its /status, on the admin port where there is one")] = None
    prometheus: Annotated[Url | None, Field(description="whose rules are those of manifests/telemetry")] = None


class Settings(Document):
    """`deploy.yaml`."""

    schema_version: Literal[1] = 1
    namespace: Annotated[Name, Field(description="of everything that is rendered")] = "edge-release"
    registry: Annotated[str, Field(min_length=1, description="as pods reach it: s3://bucket/prefix")]
    images: Annotated[dict[str, Image], Field(min_length=1, description="by the name that the base gives them")]
    components: list[Component] = Field(
        default_factory=lambda: list(COMPONENTS), description="of manifests/k8s/components; hpa or keda, not both"
    )
    edge: Edge = Field(default_factory=Edge)
    large: Annotated[Large | None, Field(description="the NVLink pool; null: none")] = Field(default_factory=Large)
    gateway: Keys = Field(default_factory=dict, description="more keys of gateway.yaml: policy, limits, effort")
    controller: Keys = Field(default_factory=dict, description="keys of controller.yaml")
    door: Annotated[Door | None, Field(description="without it golden prompts and figures are not asked")] = None
    canary: Canary = Field(default_factory=Canary)

    @model_validator(mode="after")
    def _one_autoscaler(self) -> Settings:
        if {"hpa", "keda"} <= set(self.components):
            raise ValueError("hpa and keda would both scale the NVLink pool: choose one")
        return self


def parse_settings(text: str, name: str) -> Settings:
    """Return the settings written in YAML; raises CatalogError, which names the key."""
    return parse_yaml(text, Settings, name)
