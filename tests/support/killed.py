"""A function in a process of its own, killed right before its n-th change to the file system.

The changes are seen by an audit hook (PEP 578), so that nothing of ours is replaced.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tests.support.stores import kill_self

_CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.symlink"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def killed_before_change(number: int, run: Callable[[], object]) -> bool:
    """Run a function in a child process; return whether the child was killed before it could end.

    Raises:
        AssertionError: the function failed.
    """
    child = os.fork()
    if not child:
        status = 1
        try:
            _kill_before(number)
            run()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return os.WIFSIGNALED(status)


def _kill_before(number: int) -> None:
    count = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if event in _CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & _WRITING):
            count += 1
            if count == number:
                kill_self()

    sys.addaudithook(hook)
