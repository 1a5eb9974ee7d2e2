"""A Kubernetes cluster over its API, by the official client.

Rules: the configuration is that of KUBECONFIG, `~/.kube/config`, or of the pod this runs in; times are bounded; only
what reads is tried again after a connection broke; nothing of a credential is in a message.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from pipeline.errors import ToolError
from pipeline.ports.kube import Applied, Change, Evicted, FieldConflict, ForbiddenError, Kind, Object, Scale

VARIABLE = "KUBECONFIG"
_PAGE = 500
_JSON, _APPLY, _MERGE = "application/json", "application/apply-patch+yaml", "application/merge-patch+json"
_MANAGER = re.compile(r'conflict with "([^"]+)"')
_HINTS = {
    401: f"log in to the cluster again, or point {VARIABLE} to other credentials",
    403: "a role must allow this identity to do so (docs/deploy.md); kubectl auth can-i tells what it may do",
    404: "create what is missing, the namespace for instance",
    422: "the API server says what it does not accept",
    429: "the API server is busy: run it again later",
}


@dataclass(frozen=True)
class Limits:
    """How long the API server may take; times in seconds."""

    connect: float = 5
    read: float = 30
    attempts: int = 4


def connect(context: str | None = None, limits: Limits = Limits()) -> KubeCluster:
    """Return the cluster that KUBECONFIG names (in a context other than its current one), or that this pod is of.

    Raises:
        ToolError: the client is not installed, or there is no usable configuration.
    """
    try:
        from kubernetes import client, config
        from urllib3 import Retry
    except ImportError as e:
        raise ToolError(f"{e.name} is not installed", hint="pip install 'edge-release[control]'") from e
    settings = client.Configuration()
    try:
        if context is None and not _has_kubeconfig() and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(context=context, client_configuration=settings)
    except (config.ConfigException, OSError, ValueError, TypeError, KeyError) as e:
        raise ToolError(f"no cluster is configured: {e}", hint=f"set {VARIABLE} to a kubeconfig file") from e
    settings.retries = Retry(total=limits.attempts, status=0, backoff_factor=0.2, allowed_methods=frozenset({"GET"}))
    return KubeCluster(client.ApiClient(settings), settings.host, limits)


def _has_kubeconfig() -> bool:
    return bool(os.environ.get(VARIABLE)) or (Path.home() / ".kube" / "config").exists()


@dataclass
class KubeCluster:
    """A cluster; `client` is the official client's ApiClient."""

    client: Any
    url: str
    limits: Limits
    _found: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)

    def serves(self, kind: Kind) -> bool:
        return kind.name in self._kinds(kind)

    def find(self, kind: Kind, name: str, namespace: str | None = None) -> Object | None:
        status, answer = self._call("GET", self._path(kind, namespace, name))
        return None if status == 404 else self._ok(status, answer)

    def find_all(self, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = "") -> list[Object]:
        return self._listed(kind, namespace, {"labelSelector": labels, "fieldSelector": fields})[0]

    def watch(self, kind: Kind, *, labels: str = "", seconds: int = 30) -> Iterator[list[Change]]:
        found, version = self._listed(kind, None, {"labelSelector": labels})
        yield [Change(document) for document in found]
        query = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": seconds, "labelSelector": labels}
        while True:
            for event in self._changes(kind, {**query, "resourceVersion": version}, seconds):
                if event.get("type") == "ERROR":  # what is known grew too old
                    return
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    document = {"apiVersion": kind.api_version, "kind": kind.name, **event["object"]}
                    yield [Change(document, gone=event["type"] == "DELETED")]
            yield []

    def _changes(self, kind: Kind, query: Mapping[str, Any], seconds: int) -> Iterator[Object]:
        with _translated(self.url):
            answer = self._ask("GET", self._path(kind, None), query, seconds + self.limits.read)
            if answer.status >= 300:
                self._ok(int(answer.status), _document(answer.read()))
            yield from map(_document, _lines(answer.response.stream()))

    def _listed(self, kind: Kind, namespace: str | None, selectors: Mapping[str, str]) -> tuple[list[Object], str]:
        """Return objects, and the version of the whole list."""
        query: dict[str, Any] = {**selectors, "limit": _PAGE}
        found: list[Object] = []
        while True:
            status, answer = self._call("GET", self._path(kind, namespace), query)
            if status == 410 and "continue" in query:  # took too long: once more, in one piece
                query, found = dict(selectors), []
                continue
            page = self._ok(status, answer)
            found += [{"apiVersion": kind.api_version, "kind": kind.name, **item} for item in page.get("items") or ()]
            if not (after := page["metadata"].get("continue")):
                return found, str(page["metadata"].get("resourceVersion", ""))
            query["continue"] = after

    def create(self, document: Object) -> Object | None:
        status, answer = self._call("POST", self._path(Kind.of(document), _namespace(document)), body=document)
        return None if status == 409 else self._ok(status, answer)

    def replace(self, document: Object) -> Object | None:
        status, answer = self._call("PUT", self._own_path(document), body=document)
        return None if status in {404, 409} else self._ok(status, answer)

    def apply(self, document: Object, *, manager: str, force: bool = False, dry_run: bool = False) -> Applied:
        query = {"fieldManager": manager, "force": str(force).lower(), "dryRun": "All" if dry_run else ""}
        status, answer = self._call("PATCH", self._own_path(document), query, document, _APPLY)
        if status == 409 and (conflicts := _conflicts(answer)):
            return Applied(None, conflicts)
        return Applied(self._ok(status, answer))

    def patch(self, kind: Kind, name: str, namespace: str | None, changes: Object) -> Object | None:
        status, answer = self._call("PATCH", self._path(kind, namespace, name), body=changes, content=_MERGE)
        return None if status == 404 else self._ok(status, answer)

    def delete(self, kind: Kind, name: str, namespace: str | None = None) -> bool:
        body = {"propagationPolicy": "Background"}
        status, answer = self._call("DELETE", self._path(kind, namespace, name), body=body)
        return status != 404 and bool(self._ok(status, answer))

    def scale(self, kind: Kind, name: str, namespace: str) -> Scale | None:
        status, answer = self._call("GET", f"{self._path(kind, namespace, name)}/scale")
        if status == 404:
            return None
        found = self._ok(status, answer)
        wanted, current = found["spec"].get("replicas", 0), found["status"].get("replicas", 0)
        return Scale(wanted, current, found["metadata"]["resourceVersion"])

    def set_scale(self, kind: Kind, name: str, namespace: str, wanted: int, version: str | None = None) -> bool:
        meta = {"name": name, "namespace": namespace, **({"resourceVersion": version} if version else {})}
        body = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": meta, "spec": {"replicas": wanted}}
        status, answer = self._call("PUT", f"{self._path(kind, namespace, name)}/scale", body=body)
        return status not in {404, 409} and bool(self._ok(status, answer))

    def evict(self, namespace: str, pod: str, grace_s: int | None = None) -> Evicted:
        meta = {"name": pod, "namespace": namespace}
        body: Object = {"apiVersion": self._eviction_version(), "kind": "Eviction", "metadata": meta}
        if grace_s is not None:
            body["deleteOptions"] = {"gracePeriodSeconds": grace_s}
        status, answer = self._call("POST", f"{self._path(Kind('v1', 'Pod'), namespace, pod)}/eviction", body=body)
        if status == 404:
            return Evicted.ABSENT
        if status == 429 and _causes(answer, "DisruptionBudget"):
            return Evicted.BLOCKED
        self._ok(status, answer)
        return Evicted.ACCEPTED

    def _eviction_version(self) -> str:
        """Return policy/v1, or v1beta1 on servers before 1.22."""
        self._kinds(Kind("v1", "Pod"))
        found = self._found["/api/v1"]["pods/eviction"]
        return f"{found['group']}/{found['version']}"

    def _own_path(self, document: Object) -> str:
        return self._path(Kind.of(document), _namespace(document), document["metadata"]["name"])

    def _path(self, kind: Kind, namespace: str | None, name: str | None = None) -> str:
        resource = self._kinds(kind).get(kind.name)
        if resource is None:
            raise ToolError(f"{self.url} does not serve {kind}", hint="install what brings it, or a newer Kubernetes")
        within = f"/namespaces/{quote(namespace, safe='')}" if namespace and resource["namespaced"] else ""
        return f"{kind.path}{within}/{resource['name']}" + (f"/{quote(name, safe='')}" if name else "")

    def _kinds(self, kind: Kind) -> dict[str, Any]:
        """Return the resources of a kind's group by their kinds; asked for again where the kind was not there."""
        if kind.name not in self._found.get(kind.path, {}):
            status, answer = self._call("GET", kind.path)
            resources = [] if status == 404 else self._ok(status, answer)["resources"]
            self._found[kind.path] = {r["name"] if "/" in r["name"] else r["kind"]: r for r in resources}
        return self._found[kind.path]

    def _call(
        self, method: str, path: str, query: Mapping[str, Any] = {}, body: Any = None, content: str = _JSON
    ) -> tuple[int, Object]:
        with _translated(self.url):
            answer = self._ask(method, path, query, self.limits.read, body=body, content=content)
            data = answer.read()
        return int(answer.status), _document(data)

    def _ask(
        self, method: str, path: str, query: Mapping[str, Any], read_s: float, *, body: Any = None, content: str = _JSON
    ) -> Any:
        """Return an answer that was not read yet."""
        asked = urlencode({name: value for name, value in query.items() if value})
        headers = {"Accept": _JSON, "Content-Type": content, "User-Agent": "edge-release"}
        self.client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        return self.client.call_api(
            method, f"{self.url}{path}" + (f"?{asked}" if asked else ""), headers, body,
            _request_timeout=(self.limits.connect, read_s),
        )  # fmt: skip

    def _ok(self, status: int, answer: Object) -> Object:
        if 200 <= status < 300:
            return answer
        said = answer.get("message") or answer.get("reason") or f"status {status}"
        kind = ForbiddenError if status == 403 and answer.get("reason") == "Forbidden" else ToolError
        raise kind(f"{self.url}: {said}", hint=_HINTS.get(status, "see the API server's log, then run it again"))


@contextmanager
def _translated(url: str) -> Iterator[None]:
    from kubernetes.client import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (HTTPError, ApiException, ConfigException, OSError, ValueError) as e:
        said = " ".join(str(e.reason if isinstance(e, ApiException) else e).split())
        raise ToolError(
            f"{url}: {said or type(e).__name__}",
            hint=f"is it up? {VARIABLE} says where it is and who may ask",
        ) from e


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield whole lines of a stream."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from filter(None, lines)


def _document(data: bytes) -> Object:
    """Return what was answered; what is no JSON object as its message."""
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"message": data.decode(errors="replace").strip()[:200]}


def _namespace(document: Object) -> str | None:
    found = document["metadata"].get("namespace")
    return None if found is None else str(found)


def _causes(answer: Object, reason: str) -> list[Object]:
    causes = (answer.get("details") or {}).get("causes") or ()
    return [cause for cause in causes if cause.get("reason") == reason]


def _conflicts(answer: Object) -> tuple[FieldConflict, ...]:
    found = []
    for cause in _causes(answer, "FieldManagerConflict"):
        named = _MANAGER.search(cause.get("message", ""))
        found.append(FieldConflict(named[1] if named else "?", cause.get("field", "")))
    return tuple(sorted(found, key=lambda c: (c.manager, c.field)))
