"""`vcgencmd`: what the firmware of a Raspberry Pi answers.

Rules: without the program, without access to the firmware or for a command it does not know, there is no answer
(None). The user needs access to `/dev/vcio`, on Raspberry Pi OS through the group `video`.

Source: https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd.
"""

from __future__ import annotations

import shutil

from pipeline.errors import ToolError
from pipeline.ports import process

PROGRAM = "vcgencmd"


def ask(*command: str) -> str | None:
    """Return the firmware's answer, one line a NUL or newline; None where there is no answer.

    An older firmware refuses a command with `error=1 error_msg="Command not registered"` and status 0.
    """
    if shutil.which(PROGRAM) is None:
        return None
    try:
        answer = process.run([PROGRAM, *command], hint="add the user to the group 'video'")
    except ToolError:
        return None
    answer = answer.replace("\0", "\n").strip()
    return None if not answer or "error_msg=" in answer else answer
