"""The proxies that are measured side by side, each before the same server.

A row more is an entry more in PROXIES: a name, and what starts it before a server's address.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.catalog.names import Target
from pipeline.manifest.encoding import sha256
from pipeline.peers.status import Served
from tests.support import envoys
from tests.support.gateways import LARGE, SHARDS, TINY
from tests.support.llama_server import free_port
from tests.support.releases import LINE
from tests.support.scenes import Scene

ROOT = Path(__file__).parents[2]
VENVS = Path.home() / ".cache/edge-release/bench"
_LITELLM = "litellm[proxy]==1.105.7"

Argv = Sequence[str | Path]


class MissingError(Exception):
    """A program is not on this machine; says how to get it."""


@dataclass(frozen=True)
class Site:
    """Where a proxy runs: a folder, its port, the port of the server behind it, and who speaks for that, if it does not."""

    root: Path
    port: int
    upstream: int
    status: str | None = None

    def flags(self, name: str) -> list[str | Path]:
        """What a gateway or a picker with that name is started with, to know the server and its release."""
        address = {"url": f"http://127.0.0.1:{self.upstream}", "status": self.status}
        config = yaml.safe_dump({"endpoints": [{"pool": "edge", "name": "pi", **address}]})
        return [
            "--config", self.file("gateway.yaml", config), "--registry", self.root / "registry",
            "--trust", self.root / "trust.yaml", "--state", self.root / f"{name}.json",
        ]  # fmt: skip

    def file(self, name: str, text: str) -> Path:
        """Write a file of the folder, and return where it is."""
        path = self.root / name
        path.write_text(text)
        return path


@dataclass(frozen=True)
class Proxy:
    """One row; `commands` gives the programs it is made of, `share` how many of the usual requests it gets.

    `ready` is the path that answers 200 once it has all it works with, where that is later than its first answer.
    """

    name: str
    commands: Callable[[Site], list[Argv]]
    share: float = 1.0
    ready: str = ""


def released(root: Path, model: bytes) -> Served:
    """Publish a release whose tiny-edge is a model, and return what a server of it serves."""
    scene = Scene(root)
    tiny = {f"tiny-edge-{target}/model.gguf": model for target in Target}
    scene.publish(1, files={**tiny, f"{LARGE}/shards.json": SHARDS}, valid_days=36500)
    trust = {"line": LINE, "public_keys": [scene.publisher.pair.public_pem.decode()]}
    (root / "trust.yaml").write_text(yaml.safe_dump(trust))
    return Served(
        variant=TINY, model_sha256=sha256(model), release_line=LINE, release_version=1, manifest_sha256="0" * 64
    )


def gateway(site: Site) -> list[Argv]:
    """This project's, before a server of what `released` laid down."""
    main = [sys.executable, "-c", "import sys; from pipeline.cli import main; sys.exit(main())", "gateway"]
    return [[*main, *site.flags("gateway"), "--port", str(site.port)]]


def bare(site: Site) -> list[Argv]:
    """The least that uvicorn and aiohttp do together."""
    return [[sys.executable, "-m", "tests.bench.bare_proxy", str(site.port), f"http://127.0.0.1:{site.upstream}"]]


def nginx(site: Site) -> list[Argv]:
    """nginx with one worker, kept connections to the server and no buffering, so that events pass at once."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise MissingError("nginx is not installed: apt-get install nginx-light")
    config = site.file(
        "nginx.conf",
        f"""daemon off; master_process off; worker_processes 1; pid {site.root}/nginx.pid; error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {site.root}; proxy_temp_path {site.root};
  fastcgi_temp_path {site.root}; scgi_temp_path {site.root}; uwsgi_temp_path {site.root};
  keepalive_requests 1000000;
  upstream server {{ server 127.0.0.1:{site.upstream}; keepalive 128; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{site.port};
    location / {{ proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
""",
    )
    return [[program, "-c", config, "-e", "stderr", "-p", site.root]]


def envoy(site: Site) -> list[Argv]:
    """Envoy with one worker and no filter but its router."""

    def address(port: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    filters = "type.googleapis.com/envoy.extensions.filters"
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{filters}.http.router.v3.Router"}}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "server", "timeout": "0s"}}
    manager = {
        "@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": [router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    ends = [{"lb_endpoints": [{"endpoint": {"address": address(site.upstream)}}]}]
    cluster = {"name": "server", "type": "STATIC", "load_assignment": {"cluster_name": "server", "endpoints": ends}}
    listener = {"name": "bench", "address": address(site.port), "filter_chains": [chain]}
    config = site.file("envoy.json", json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    return [_envoy(config)]


def picked(site: Site) -> list[Argv]:
    """Envoy with the manifest's configuration, which asks this project's endpoint picker where each request goes."""
    picker, admin = free_port(), free_port()
    config = site.file("picked.yaml", yaml.safe_dump(envoys.configured([site.upstream], picker, site.port, admin)))
    return [envoys.picker_argv(picker, free_port(), *site.flags("picker")), _envoy(config)]


def _envoy(config: Path) -> Argv:
    if why := envoys.missing():
        raise MissingError(why)
    return envoys.envoy_argv(config)


def litellm(site: Site) -> list[Argv]:
    """LiteLLM's proxy as its documentation starts it, one worker, without a database."""
    model = {"model": "openai/auto", "api_base": f"http://127.0.0.1:{site.upstream}/v1", "api_key": "none"}
    config = site.file(
        "litellm.yaml", yaml.safe_dump({"model_list": [{"model_name": "auto", "litellm_params": model}]})
    )
    program = _venv("litellm", _LITELLM) / "litellm"
    quiet = ["env", "LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY=true"]
    return [
        [*quiet, program, "--config", config, "--host", "127.0.0.1", "--port", str(site.port), "--telemetry", "False"]
    ]


PROXIES = (
    Proxy("nginx", nginx),
    Proxy("Envoy", envoy),
    Proxy("Envoy+picker", picked, share=0.25),
    Proxy("gateway", gateway, ready="/readyz"),
    Proxy("bare", bare),
    Proxy("LiteLLM", litellm, share=0.05),
)


def _venv(name: str, requirement: str) -> Path:
    """Return the programs of an environment that holds a package, made when it is first asked for."""
    folder = VENVS / name
    done = folder / requirement.replace("/", "-")
    if not done.exists():
        print(f"installing {requirement} into {folder} (once)", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, requirement], check=True)
        except subprocess.CalledProcessError as e:
            raise MissingError(f"{requirement} cannot be installed: {' '.join(map(str, e.cmd))}") from e
        done.touch()
    return folder / "bin"
