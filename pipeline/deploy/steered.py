"""What the controller of a rendered release is told: its gateways, its pool, and who scales.

Rules: the site's own keys count before these; the policy it goes out from is the gateways' own; deploy and control know
nothing of each other but this file's format.
"""

from __future__ import annotations

from pipeline.deploy import sizes
from pipeline.deploy.settings import Keys, Settings
from pipeline.manifest.statement import VariantEntry

_AUTOSCALERS = frozenset({"hpa", "keda"})


def keys(settings: Settings, large: VariantEntry | None) -> Keys:
    """Return the keys of controller.yaml for a site whose NVLink pool serves `large`."""
    place = settings.namespace
    gateway: Keys = {
        "name": "gateway", "url": f"https://gateway-admin.{place}.svc:8089", "every": True,
        "tls_name": f"gateway.{place}.svc",
    }  # fmt: skip
    base: Keys = {"policy": settings.gateway["policy"]} if "policy" in settings.gateway else {}
    return {
        **base,
        "gateways": [gateway],
        "pools": [_pool(settings, large)] if large is not None else [],
        "acting": {"actor": "autoscaler" if _AUTOSCALERS & set(settings.components) else "controller"},
        "eviction": {"namespaces": [place]},
        **settings.controller,
    }


def _pool(settings: Settings, large: VariantEntry) -> Keys:
    assert settings.large is not None, "the pool is of its variant"
    return {
        "name": "nvlink", "variants": [settings.large.variant.name], "namespace": settings.namespace,
        "kind": "StatefulSet", "workload": "large", "most": settings.large.most, "gpus": sizes.gpus(large),
    }  # fmt: skip
