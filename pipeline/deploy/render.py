"""A verified release as Kubernetes objects: a pure function of the base, the release and the site.

Rules: only an `Accepted` release is rendered; the same input gives the same bytes; a server's pods carry release and
manifest in arguments and annotations alike, which the admission policy compares; a container whose image has no digest
in the settings is refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.catalog.names import Variant
from pipeline.deploy import sizes, steered
from pipeline.deploy.settings import Settings
from pipeline.errors import CatalogError, ConflictError, StageError
from pipeline.manifest.encoding import canonical, decode, sha256
from pipeline.manifest.rules import Accepted
from pipeline.manifest.statement import VariantEntry
from pipeline.peers.releases import MOST, Listed, ReleaseList

Object = dict[str, Any]
EDGE, LARGE = "node", "large"  # the StatefulSets
NOTE = "edge-release.dev"
RELEASE, MANIFEST, VARIANT, MODEL, CONFIG, TEMPLATE = (
    f"{NOTE}/{n}" for n in ("release", "manifest", "variant", "model", "config", "template")
)
RELEASES, RELEASES_FILE, ADMITTED = "releases", "releases.json", "admitted"
SCHEDULER = "edge-release"  # the profile of the component's kube-scheduler
KEPT = 3  # releases that gateways accept in a rollout: the new one, and what servers may still be on
_NAMESPACE = "edge-release"  # the base's


@dataclass(frozen=True)
class Wanted:
    """What is rendered: the release, whom pods trust, and the site's settings. Servers may still be on the releases of
    what was rendered `before`; on all of them where the release is `alone`, without a rollout.
    """

    release: Accepted
    trust: Mapping[str, str]
    settings: Settings
    before: Sequence[Object] = ()
    alone: bool = False

    @property
    def listed(self) -> ReleaseList:
        """The releases that gateways accept, newest first; raises ConflictError where they are too many."""
        new = Listed(version=self.version, manifest_sha256=self.release.digest)
        found = [new, *(b for b in listed(self.before) if b != new)]
        if self.alone and len(found) > MOST:
            raise ConflictError(
                f"release {self.version} would be the {len(found)}th of which no rollout says that servers left it",
                hint="roll out first: --rollout",
            )
        return ReleaseList(releases=found[: MOST if self.alone else KEPT])

    @property
    def version(self) -> int:
        return self.release.manifest.release.version

    def entry(self, variant: Variant) -> VariantEntry:
        """Return the release's entry of a variant; raises StageError where it has none."""
        try:
            return self.release.manifest.variant(variant.name)
        except KeyError as e:
            raise StageError(
                f"release {self.version} has no {variant}", hint="deploy.yaml names tiers and targets: edge, large"
            ) from e


def render(base: Sequence[Object], wanted: Wanted) -> list[Object]:
    """Return the objects that a cluster is to have, in the order to apply them.

    Raises:
        CatalogError: the base has an image that the settings do not name, or lacks a StatefulSet.
        ConflictError: servers may be on more releases than gateways can be told of.
        StageError: the release lacks a variant that the site serves, or its measurement.
    """
    settings = wanted.settings
    documents = [_placed(d, settings.namespace) for d in base if settings.large or not _is_large(d)]
    config = _gateway(settings)
    made = [*_configs(wanted, config), *documents]
    for document in made:
        _fill(document, wanted, config)
    return sorted(made, key=_order)


def listed(documents: Sequence[Object]) -> tuple[Listed, ...]:
    """Return the releases that gateways accept by rendered objects, newest first."""
    text = config_map(documents, RELEASES).get(RELEASES_FILE)
    return tuple(decode(text.encode(), ReleaseList, RELEASES_FILE).releases) if text else ()


def returning(before: Sequence[Object], after: Sequence[Object]) -> list[Object]:
    """Return the objects from before a release that is taken back: gateways and the admission policy still know the
    release behind them, for servers are on it until they went back one by one.
    """
    there = listed(before)
    gone = [r for r in listed(after)[:1] if r not in there]
    changed = {
        RELEASES: _releases(ReleaseList(releases=[*there[: MOST - len(gone)], *gone])),
        ADMITTED: config_map(after, ADMITTED) | config_map(before, ADMITTED),
    }
    return [
        {**d, "data": changed[d["metadata"]["name"]]}
        if d["kind"] == "ConfigMap" and d["metadata"]["name"] in changed
        else d
        for d in before
    ]


def config_map(documents: Sequence[Object], name: str) -> dict[str, str]:
    """Return a ConfigMap's data among objects."""
    found = [d for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"] == name]
    return dict(found[0].get("data") or {}) if found else {}


def key(document: Object) -> tuple[str, str, str]:
    """Return what names an object: its kind, namespace and name."""
    meta = document["metadata"]
    return document["kind"], meta.get("namespace", ""), meta["name"]


_OF_CLUSTER = {
    "ClusterRole", "ClusterRoleBinding", "PriorityClass", "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}  # fmt: skip
_FIRST = (
    "Namespace", "PriorityClass", "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding",
    "ConfigMap",
)  # fmt: skip
_LAST = ("Deployment", "StatefulSet", "HorizontalPodAutoscaler", "ScaledObject")


def _order(document: Object) -> tuple[int, tuple[str, str, str]]:
    kind = document["kind"]
    place = _FIRST.index(kind) if kind in _FIRST else len(_FIRST)
    return (len(_FIRST) + 1 + _LAST.index(kind) if kind in _LAST else place), key(document)


def _is_large(document: Object) -> bool:
    return document["metadata"]["name"] in {LARGE, f"{_NAMESPACE}-{LARGE}"}


def _placed(document: Object, namespace: str) -> Object:
    """Return a copy in the site's namespace, names of hosts included."""

    def walk(value: Any, at: str = "") -> Any:
        if isinstance(value, dict):
            return {k: walk(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v, at) for v in value]
        if isinstance(value, str):
            if value == _NAMESPACE and at in {"namespace", "kubernetes.io/metadata.name", "resourceNamespace"}:
                return namespace
            for told in (".{}.svc", "resourceNamespace: {}"):  # in files that ConfigMaps hold, too
                value = value.replace(told.format(_NAMESPACE), told.format(namespace))
            return value
        return value

    found: Object = walk(copy.deepcopy(document))
    spec = found.get("spec", {})
    named = [(spec.get("template", {}).get("spec", {}), "priorityClassName")]
    if document["kind"] in _OF_CLUSTER:  # two sites of one cluster share nothing
        named += [(found["metadata"], "name"), (found.get("roleRef", {}), "name"), (spec, "policyName")]
    for holder, what in named:
        if str(holder.get(what, "")).startswith(f"{_NAMESPACE}-"):
            holder[what] = namespace + holder[what].removeprefix(_NAMESPACE)
    if document["kind"] == "Namespace" and document["metadata"]["name"] == _NAMESPACE:
        found["metadata"]["name"] = namespace
    return found


def _fill(document: Object, wanted: Wanted, config: str) -> None:
    template = document.get("spec", {}).get("template") if document["kind"] in {"Deployment", "StatefulSet"} else None
    if template is None:
        return
    for container in template["spec"]["containers"]:
        container["image"] = _image(container["image"], wanted.settings)
    name = document["metadata"]["name"]
    if document["kind"] == "StatefulSet" and name in _SERVERS:
        _SERVERS[name](document, wanted)
        _annotate(template, {TEMPLATE: sha256(canonical(template))[:16]})
    elif name in {"gateway", "scheduler"}:
        template["spec"]["containers"][0]["args"].append(f"--registry={wanted.settings.registry}")
    if name == "gateway":
        if "hpa" in wanted.settings.components:
            document["spec"].pop("replicas", None)
        _annotate(template, {CONFIG: sha256(config.encode())[:16]})


def _image(name: str, settings: Settings) -> str:
    try:
        return settings.images[name]
    except KeyError as e:
        raise CatalogError(
            f"the image {name!r} has no digest in deploy.yaml", hint=f"images: {{{name}: registry/name@sha256:…}}"
        ) from e


def _edge(document: Object, wanted: Wanted) -> None:
    edge = wanted.settings.edge
    entry = wanted.entry(edge.variant)
    memory = sizes.quantity(sizes.edge_memory(entry, edge.slots, edge.context))
    document["spec"]["replicas"] = edge.replicas
    arguments = [f"--slots={edge.slots}", f"--context={edge.context}"]
    _server(document, wanted, entry, arguments)
    container = document["spec"]["template"]["spec"]["containers"][0]
    container["resources"] = {"requests": {"cpu": edge.cpu, "memory": memory}, "limits": {"memory": memory}}
    _disk(document, edge.storage, edge.disk)


def _large(document: Object, wanted: Wanted) -> None:
    large = wanted.settings.large
    assert large is not None, "a site without it has no such document"
    entry = wanted.entry(large.variant)
    memory, gpus = sizes.quantity(sizes.large_memory(entry)), str(sizes.gpus(entry))
    if large.replicas:
        document["spec"]["replicas"] = large.replicas
    _server(document, wanted, entry, [])
    asked = {"memory": memory, "nvidia.com/gpu": gpus}
    container = document["spec"]["template"]["spec"]["containers"][0]
    container["resources"] = {"requests": {"cpu": "4", **asked}, "limits": asked}
    _disk(document, large.storage, large.disk)


_SERVERS: Mapping[str, Callable[[Object, Wanted], None]] = {EDGE: _edge, LARGE: _large}


def _server(document: Object, wanted: Wanted, entry: VariantEntry, arguments: list[str]) -> None:
    version, digest = wanted.version, wanted.release.digest
    file = entry.model_file
    if file is None:
        raise StageError(f"{entry.name} has not one file by which it is known", hint="release it anew")
    template = document["spec"]["template"]
    template["spec"]["containers"][0]["args"] += [
        f"--registry={wanted.settings.registry}", f"--variant={entry.name}", f"--release={version}",
        f"--manifest={digest}", *arguments,
    ]  # fmt: skip
    if "scheduler" in wanted.settings.components:
        template["spec"]["schedulerName"] = SCHEDULER
    notes = {RELEASE: str(version), MANIFEST: digest, VARIANT: entry.name, MODEL: file.sha256}
    _annotate(document, notes)
    _annotate(template, notes)


def _annotate(holder: Object, notes: Mapping[str, str]) -> None:
    holder["metadata"].setdefault("annotations", {}).update(notes)


def _disk(document: Object, storage: str | None, size: str) -> None:
    """Let the home of a server outlive its pods, where the site has a StorageClass for that."""
    if storage is None:
        return
    spec = document["spec"]["template"]["spec"]
    spec["volumes"] = [v for v in spec["volumes"] if v["name"] != "home"]
    claim = {
        "accessModes": ["ReadWriteOnce"], "storageClassName": storage, "resources": {"requests": {"storage": size}},
    }  # fmt: skip
    document["spec"]["volumeClaimTemplates"] = [{"metadata": {"name": "home"}, "spec": claim}]


def _pool(wanted: Wanted) -> VariantEntry | None:
    large = wanted.settings.large
    return None if large is None else wanted.entry(large.variant)


def _configs(wanted: Wanted, gateway: str) -> list[Object]:
    settings = wanted.settings
    data = {
        "trust": dict(wanted.trust),
        "gateway": {"gateway.yaml": gateway},
        "controller": {"controller.yaml": _yaml(steered.keys(settings, _pool(wanted)))},
        RELEASES: _releases(wanted.listed),
        ADMITTED: _admitted(wanted),
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "namespace": settings.namespace,
                "labels": {"app.kubernetes.io/part-of": "edge-release"},
            },
            "data": found,
        }
        for name, found in data.items()
    ]


def _releases(listed: ReleaseList) -> dict[str, str]:
    return {RELEASES_FILE: listed.encode().decode() + "\n"}


def _admitted(wanted: Wanted) -> dict[str, str]:
    """Return what the admission policy lets in: the releases that servers may be on, their models, and their images.

    `release.<version>` has the images that a release was deployed with, so that they go when it does.
    """
    images = {image.rpartition(":")[2]: image for image in wanted.settings.images.values()}
    found = _admitted_before(wanted)
    found |= {f"manifest.{r.manifest_sha256}": str(r.version) for r in wanted.listed.releases}
    models = [e.model_file.sha256 for e in wanted.release.manifest.predicate.variants if e.model_file]
    found |= {f"model.{digest}": str(wanted.version) for digest in models}
    return (
        found | {f"image.{d}": i for d, i in images.items()} | {f"release.{wanted.version}": " ".join(sorted(images))}
    )


def _admitted_before(wanted: Wanted) -> dict[str, str]:
    before = config_map(wanted.before, ADMITTED)
    kept = {str(r.version) for r in wanted.listed.releases[1:]}
    releases = {k: v for k, v in before.items() if k.startswith("release.") and k.partition(".")[2] in kept}
    images = {f"image.{digest}" for digests in releases.values() for digest in digests.split()}
    models = {k: v for k, v in before.items() if k.startswith("model.") and v in kept}
    return releases | models | {k: v for k, v in before.items() if k in images}


def _gateway(settings: Settings) -> str:
    large = settings.large.most if settings.large else 0
    pools = (EDGE, "edge", 8080, settings.edge.replicas), (LARGE, "nvlink", 8000, large)
    endpoints = [
        {"name": f"{name}-{i}", "url": f"https://{name}-{i}.{name}.{settings.namespace}.svc:{port}", "pool": pool}
        for name, pool, port, count in pools
        for i in range(count)
    ]
    return _yaml({"schema_version": 1, "endpoints": endpoints, **settings.gateway})


def _yaml(value: Mapping[str, object]) -> str:
    return yaml.safe_dump(json.loads(canonical(dict(value))), sort_keys=True, width=120)


def document_bytes(document: Object) -> bytes:
    """Return the one way an object is written to a file."""
    return yaml.safe_dump(document, sort_keys=True, width=120, allow_unicode=True).encode()
