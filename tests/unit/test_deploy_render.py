"""A release rendered for Kubernetes: valid, hardened, the same bytes each time, and nothing that was not verified."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from pipeline.cli import parser
from pipeline.control.settings import parse_settings as parse_controller
from pipeline.deploy import base
from pipeline.deploy.render import document_bytes, key, returning
from pipeline.deploy.settings import Settings, parse_settings
from pipeline.errors import CatalogError, StageError
from pipeline.manifest.encoding import sha256
from pipeline.peers.role import Role
from pipeline.ports.kube import Object
from pipeline.serving.gateway.settings import parse_settings as parse_gateway
from tests.support.deploys import BASE, GIB, IMAGES, Line, named, rendered, settings

VERSIONS = ["1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"]
# Kinds that others' definitions bring; their fields are compared with the documentation by hand.
FOREIGN = {"Certificate", "Issuer", "ScaledObject"}
EVERYTHING = ["admission", "certificates", "hpa", "scheduler"]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return Line(tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="module")
def documents(line: Line) -> list[Object]:
    """Release 1 with every component, on disks that outlive pods."""
    return rendered(line.accepted(1), settings(components=EVERYTHING, edge={"storage": "local-path"}))


def pods(documents: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yield every pod template with its object's name."""
    for document in documents:
        if document["kind"] in {"Deployment", "StatefulSet"}:
            yield document["metadata"]["name"], document["spec"]["template"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(documents: list[Object], version: str) -> None:
    """Strictly, by the schemas of current Kubernetes versions; only foreign kinds are left out."""
    left = set()
    for document in documents:
        if document["kind"] in FOREIGN:
            left.add(document["kind"])
        else:
            kubernetes_validate.validate(document, version, strict=True)
    assert left == FOREIGN - {"ScaledObject"}


def test_pods_keep_to_the_restricted_standard(documents: list[Object]) -> None:
    """No root, no privileges, no host, no writable root, no token where none is needed.

    Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted.
    """
    allowed = {
        "configMap",
        "emptyDir",
        "secret",
        "persistentVolumeClaim",
        "projected",
        "downwardAPI",
        "csi",
        "ephemeral",
    }
    for name, template in pods(documents):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= allowed, name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name
            assert {"livenessProbe", "readinessProbe"} <= set(container), name
        assert spec["automountServiceAccountToken"] is (name in {"controller", "scheduler", "kube-scheduler"}), name
    labels = named(documents, "Namespace", "edge-release")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_what_containers_are_told_is_understood(documents: list[Object]) -> None:
    """Our commands parse the arguments that pods give them, and their images have digests."""
    for name, template in pods(documents):
        (container,) = template["spec"]["containers"]
        assert container["image"] in IMAGES.values()
        if name in {"node", "large", "gateway", "scheduler", "controller"}:
            parser().parse_args(container["args"])


@pytest.mark.parametrize(
    ("components", "actor"), [(["admission"], "controller"), (["hpa"], "autoscaler"), (["keda"], "autoscaler")]
)
def test_the_controller_is_told_of_every_gateway_and_the_pool(line: Line, components: list[str], actor: str) -> None:
    """Its file is what the controller takes; an autoscaler that a site chose scales instead; own keys count before."""
    site = settings(
        components=components, controller={"cost_cap_usd_h": 40.0}, gateway={"policy": {"version": 2, "cpu": 0.7}}
    )
    config = named(rendered(line.accepted(1), site), "ConfigMap", "controller")
    found = parse_controller(config["data"]["controller.yaml"], "controller.yaml")
    assert [(g.url, g.every, g.tls_name) for g in found.gateways] == [
        ("https://gateway-admin.edge-release.svc:8089", True, "gateway.edge-release.svc")
    ]
    assert [(p.name, p.kind, p.workload, p.variants) for p in found.pools] == [
        ("nvlink", "StatefulSet", "large", ["large-x86_64"])
    ]
    assert (found.acting.actor, found.cost_cap_usd_h, found.policy.cpu) == (actor, 40.0, 0.7)


def test_the_same_input_gives_the_same_bytes(line: Line) -> None:
    """Rendered twice, also onto what is there already, not a byte differs."""
    site, first = settings(components=EVERYTHING), line.accepted(1)
    once = [document_bytes(d) for d in rendered(first, site)]
    assert once == [document_bytes(d) for d in rendered(first, site)]
    assert once == [document_bytes(d) for d in rendered(first, site, rendered(first, site))]


def test_sizes_come_from_what_was_measured(documents: list[Object]) -> None:
    """A node asks for more than its measured peak, a large server for the GPUs it is split over."""
    node = named(documents, "StatefulSet", "node")["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert node["limits"]["memory"] == node["requests"]["memory"]
    assert GIB < int(node["limits"]["memory"].removesuffix("Mi")) << 20 < 3 * GIB
    large = named(documents, "StatefulSet", "large")["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert large["limits"]["nvidia.com/gpu"] == "4"


def test_without_a_measurement_nothing_is_guessed(line: Line) -> None:
    """A variant whose memory nobody measured is not rendered."""
    with pytest.raises(StageError, match="no measurement"):
        rendered(line.accepted(7, mutate=lambda _: None), settings())


def test_servers_carry_the_release_they_are_annotated_with(line: Line, documents: list[Object]) -> None:
    """Arguments and annotations name one manifest, and the model file's digest is the release's."""
    accepted = line.accepted(1)
    for name in ("node", "large"):
        template = named(documents, "StatefulSet", name)["spec"]["template"]
        notes, arguments = template["metadata"]["annotations"], template["spec"]["containers"][0]["args"]
        assert notes["edge-release.dev/manifest"] == accepted.digest
        assert [a for a in arguments if a.startswith("--manifest")] == [f"--manifest={accepted.digest}"]
        assert "--release=1" in arguments
        assert not [a for a in arguments if a.startswith("--channel")]
        assert template["spec"]["schedulerName"] == "edge-release"
    assert notes["edge-release.dev/model"] == sha256(b"{}")


def test_a_new_release_is_accepted_beside_the_one_before(line: Line) -> None:
    """Gateways and the admission policy know both; of older ones two are kept, with their images and models."""
    site, found = settings(), list[Object]()
    for version in range(1, 6):
        images = {**IMAGES, "edge-release": f"registry.example/edge-release@sha256:{version:064x}"}
        site = settings(images=images)
        found = rendered(line.accepted(version), site, found)
    listed = json.loads(named(found, "ConfigMap", "releases")["data"]["releases.json"])["releases"]
    assert [r["version"] for r in listed] == [5, 4, 3]
    admitted = named(found, "ConfigMap", "admitted")["data"]
    assert sorted(k for k in admitted if k.startswith("release.")) == ["release.3", "release.4", "release.5"]
    assert sorted(v for k, v in admitted.items() if k.startswith("manifest.")) == ["3", "4", "5"]
    digests = {f"{version:064x}" for version in (3, 4, 5)} | {"b" * 64, "c" * 64}
    assert {k.removeprefix("image.") for k in admitted if k.startswith("image.")} == digests


def test_what_comes_back_beside_nothing_new_is_what_was_there(line: Line) -> None:
    """Where settings alone changed, or an older release was deployed, the list keeps its order."""
    first, site = rendered(line.accepted(1), settings()), settings(edge={"slots": 1})
    second = rendered(line.accepted(2), settings(), first)
    assert returning(first, rendered(line.accepted(1), site, first)) == first
    assert returning(second, rendered(line.accepted(1), settings(), second)) == second


def test_an_image_without_a_digest_is_refused(line: Line) -> None:
    """Neither the settings nor the base name an image by a tag."""
    with pytest.raises(CatalogError, match="edge-release-large"):
        rendered(line.accepted(1), settings(images={"edge-release": IMAGES["edge-release"]}))
    with pytest.raises(CatalogError, match="images"):
        parse_settings("registry: x\nimages: {edge-release: registry.example/edge-release:latest}\n", "deploy.yaml")


def test_gateways_get_settings_they_understand(documents: list[Object]) -> None:
    """Each Pi and each large server that may be is an endpoint by its pod's own name."""
    text = named(documents, "ConfigMap", "gateway")["data"]["gateway.yaml"]
    found = parse_gateway(text, "gateway.yaml")
    assert [e.name for e in found.endpoints] == [f"node-{i}" for i in range(3)] + [f"large-{i}" for i in range(4)]
    assert found.endpoints[0].url == "https://node-0.node.edge-release.svc:8080"


def test_certificates_have_the_roles_that_are_asked_for(documents: list[Object]) -> None:
    """cert-manager puts our roles into certificates, and the names that gateways call servers by."""
    found = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "Certificate"}
    roles = {name: spec.get("uris") for name, spec in found.items() if not spec.get("isCA")}
    assert roles == {
        "node": [Role.NODE.uri], "large": [Role.LARGE.uri], "gateway": [Role.GATEWAY.uri],
        "controller": [Role.CONTROLLER.uri], "prometheus": [Role.GATEWAY.uri], "scheduler": None,
    }  # fmt: skip
    assert found["node"]["dnsNames"] == ["*.node.edge-release.svc"]
    mounted = {v["secret"]["secretName"] for _, t in pods(documents) for v in t["spec"]["volumes"] if "secret" in v}
    assert mounted - {"gateway-keys"} <= {spec["secretName"] for spec in found.values()}


def test_nothing_may_speak_unless_it_is_said(documents: list[Object]) -> None:
    """Every pod is under the policy that denies everything, in both directions."""
    spec = named(documents, "NetworkPolicy", "default-deny")["spec"]
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_every_selector_finds_a_pod(documents: list[Object]) -> None:
    """Services, budgets and workloads select what is there."""
    labels = [template["metadata"]["labels"] for _, template in pods(documents)]
    for document in documents:
        selector = document.get("spec", {}).get("selector")
        if document["kind"] in {"Service", "PodDisruptionBudget", "Deployment", "StatefulSet"}:
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= found.items() for found in labels), key(document)


def test_a_site_may_lie_in_another_namespace(line: Line) -> None:
    """Every name of a host and every reference follows."""
    found = rendered(line.accepted(1), settings(namespace="shop-7", components=EVERYTHING))
    text = b"\n".join(document_bytes(d) for d in found).decode()
    assert ".edge-release.svc" not in text
    assert "resourceNamespace: shop-7" in text
    assert {d["metadata"].get("namespace", "shop-7") for d in found} == {"shop-7"}
    binding = named(found, "ValidatingAdmissionPolicyBinding", "shop-7-verified")["spec"]
    assert binding["policyName"] == "shop-7-verified"
    assert named(found, "ClusterRoleBinding", "shop-7-controller")["roleRef"]["name"] == "shop-7-controller"
    assert binding["paramRef"]["namespace"] == "shop-7"
    large = named(found, "StatefulSet", "large")["spec"]["template"]["spec"]
    assert large["priorityClassName"] == named(found, "PriorityClass", "shop-7-large")["metadata"]["name"]
    assert binding["matchResources"]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "shop-7"}


def test_a_site_without_the_large_tier_has_none_of_it(line: Line) -> None:
    """No server, service, budget or certificate of a pool that is not there."""
    found = rendered(line.accepted(1), settings(large=None, components=["certificates"]))
    assert not [d for d in found if d["metadata"]["name"].endswith("large")]


@pytest.mark.parametrize("component", ["hpa", "keda"])
def test_what_an_autoscaler_moves_has_no_replicas_here(line: Line, component: str) -> None:
    """Two managers of one field would fight."""
    found = rendered(line.accepted(1), settings(components=[component]))
    assert "replicas" not in named(found, "StatefulSet", "large")["spec"]
    assert ("replicas" in named(found, "Deployment", "gateway")["spec"]) is (component == "keda")


def test_servers_are_placed_by_the_component_that_knows_releases(line: Line, documents: list[Object]) -> None:
    """With the component `scheduler` servers, and they alone, choose its kube-scheduler's profile; without, none does."""

    def chosen(found: list[Object]) -> dict[str, str]:
        pods = {d["metadata"]["name"]: d["spec"]["template"]["spec"] for d in found if "template" in d.get("spec", {})}
        return {name: pod["schedulerName"] for name, pod in pods.items() if "schedulerName" in pod}

    (config,) = [d["data"] for d in documents if d["metadata"]["name"] == "kube-scheduler" and d["kind"] == "ConfigMap"]
    (profile,) = yaml.safe_load(config["kube-scheduler.yaml"])["profiles"]
    assert chosen(documents) == dict.fromkeys(("node", "large"), profile["schedulerName"])
    assert chosen(rendered(line.accepted(1), settings(components=["admission"]))) == {}


def test_two_autoscalers_are_refused() -> None:
    """hpa and keda would both scale the NVLink pool."""
    with pytest.raises(ValueError, match="choose one"):
        settings(components=["hpa", "keda"])


def test_the_example_is_understood() -> None:
    """deploy.yaml in the repository parses."""
    path = BASE / "deploy.yaml"
    assert isinstance(parse_settings(path.read_text(), path.name), Settings)


def test_kustomize_reads_the_same_base() -> None:
    """What kubectl makes of the base is what is read here."""
    if not Path("/usr/bin/kubectl").exists():
        pytest.skip("there is no kubectl (Debian: apt-get install kubernetes-client)")
    done = subprocess.run(["kubectl", "kustomize", str(BASE / "base")], capture_output=True, text=True, check=True)
    theirs = [d for d in yaml.safe_load_all(done.stdout) if d]
    ours = base.load(BASE, [])
    assert sorted(map(key, theirs)) == sorted(map(key, ours))
    assert {key(d): d for d in theirs} == {key(d): d for d in ours}


def test_what_a_kustomization_says_beyond_resources_is_refused(tmp_path: Path) -> None:
    """A patch that kustomize would apply and this would not is an error, not silence."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base/kustomization.yaml").write_text("apiVersion: v1\nkind: Kustomization\npatches: []\n")
    with pytest.raises(CatalogError, match="patches"):
        base.load(tmp_path, [])
