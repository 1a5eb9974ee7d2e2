"""A publisher or a puller as a process of its own, which may be killed at a given point.

Usage: python -m tests.support.worker publish REGISTRY RELEASE KEY POINT
       python -m tests.support.worker pull REGISTRY INTO KEY POINT
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.catalog.names import Channel
from pipeline.errors import PipelineError
from pipeline.manifest.rules import Seen
from pipeline.ports import keys
from pipeline.registry.consume import fetch
from pipeline.registry.publish import publish
from pipeline.registry.pull import pull
from pipeline.registry.store import Progress, open_store
from tests.support.releases import EDGE, LINE, NOW, Publisher, load_release
from tests.support.stores import kill_self, killing


def main(verb: str, registry: str, folder: str, key: str, point: str) -> int:
    publisher = Publisher(keys.load_or_create(Path(key)))
    store = killing(open_store(registry), point)
    try:
        if verb == "publish":
            publish(
                store,
                load_release(Path(folder)),
                channel=Channel.DEV,
                signer=publisher.sign,
                opener=publisher.opener,
                now=NOW,
                progress=_killing_progress(point),
            )
        else:
            accepted = fetch(store, opener=publisher.opener, line=LINE, seen=Seen(), now=NOW, channel=Channel.DEV)
            pull(store, accepted, EDGE, Path(folder), _killing_progress(point))
    except PipelineError as e:
        print(f"{e.message} ({e.hint})", file=sys.stderr)
        return e.exit_code
    return 0


def _killing_progress(point: str) -> Progress:
    kind, _, number = point.partition(" ")

    def progress(done: int, total: int, label: str) -> None:
        if kind == "progress" and done >= int(number):
            kill_self()

    return progress


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
