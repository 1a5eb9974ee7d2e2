"""What a deploy would change, from what is rendered and what is there."""

from __future__ import annotations

import pytest

from pipeline.deploy.apply import check
from pipeline.deploy.changes import Seen, plan
from pipeline.deploy.render import key
from pipeline.errors import ConflictError
from pipeline.ports.kube import FieldConflict, Object

WANTED: Object = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "a", "namespace": "n"},
    "data": {"k": "v"},
}
KEY = ("ConfigMap", "n", "a")


def stored(document: Object, **data: str) -> Object:
    """An object as a server has it."""
    own = {"resourceVersion": "7", "uid": "u", "creationTimestamp": "t", "managedFields": [{}], "generation": 2}
    changed = {"data": data} if data else {}
    return {**document, **changed, "metadata": {**document["metadata"], **own}, "status": {"phase": "x"}}


def test_what_the_server_adds_is_no_change() -> None:
    """Versions, status and managers differ each time."""
    assert plan([WANTED], {KEY: Seen(stored(WANTED), WANTED)}) == ()


@pytest.mark.parametrize(
    ("seen", "verb"),
    [
        pytest.param({}, "create", id="it is not there"),
        pytest.param({KEY: Seen(stored(WANTED, k="old"), stored(WANTED))}, "change", id="it differs"),
    ],
)
def test_what_changes(seen: dict[tuple[str, str, str], Seen], verb: str) -> None:
    """With its diff."""
    (change,) = plan([WANTED], seen)
    assert change.verb == verb
    assert "+  k: v" in change.diff.splitlines()


def test_what_was_rendered_before_goes() -> None:
    """Where it is still there, and unless it holds what cannot be had again."""
    namespace: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}
    gone = {**WANTED, "metadata": {"name": "b", "namespace": "n"}}
    seen = {key(d): Seen(stored(d), None) for d in (WANTED, gone, namespace)}
    seen[KEY] = Seen(stored(WANTED), WANTED)
    assert [(c.verb, c.key[2]) for c in plan([WANTED], seen, [WANTED, gone, namespace])] == [("delete", "b")]
    assert plan([WANTED], {KEY: seen[KEY]}, [WANTED, gone]) == ()


def test_a_secret_is_not_shown() -> None:
    """That it changes is, what is in it is not."""
    secret = {**WANTED, "kind": "Secret", "type": "Opaque"}
    (change,) = plan([secret], {})
    assert "k: v" not in change.diff


def test_conflicts_stop_it_with_who_and_which() -> None:
    """All of them are named at once."""
    seen = Seen(stored(WANTED), None, (FieldConflict("kubectl", ".data.k"), FieldConflict("argocd", ".data.j")))
    changes = plan([WANTED], {KEY: seen})
    with pytest.raises(ConflictError, match=r"kubectl has \.data\.k of ConfigMap a; argocd has \.data\.j") as caught:
        check(changes)
    assert "--force" in caught.value.hint
