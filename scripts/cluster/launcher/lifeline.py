"""What a cluster script tells its processes on other hosts by their standard input, and how they hear it.

First comes one line of JSON, with what must not stand on a command line; then signs of life, and the words
`stop` and `lost <host>`. The end of the input, or silence, means that the script is gone, and nobody else will
end them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from types import FrameType
from typing import Any, NoReturn

BEAT_S = 10.0
SILENCE_S = 120.0
MESSAGE_DEADLINE_S = 600.0
STOP = "stop"
LOST = "lost"
ALIVE = "alive"


class ScriptGone(Exception):
    """The script that started this process has closed the line, or says nothing any more."""


class Lifeline:
    """The receiving end. Reads the file descriptor itself: a buffer would hide what select could tell."""

    def __init__(self, fd: int = 0, silence_s: float = SILENCE_S) -> None:
        self._fd = fd
        self._silence_s = silence_s
        self._heard_at = time.monotonic()
        self._rest = b""

    def message(self) -> dict[str, Any]:
        """The first line. Until it comes the script has other hosts to wait for."""
        end = time.monotonic() + MESSAGE_DEADLINE_S
        while b"\n" not in self._rest:
            if time.monotonic() > end:
                raise ScriptGone(f"no word of what to do came within {MESSAGE_DEADLINE_S:.0f} s")
            self._read(1.0)
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def words(self, wait_s: float) -> list[str]:
        """What was said, as soon as something was, or nothing after `wait_s`.

        Raises:
            ScriptGone: the line is closed, or has been silent for too long.
        """
        self._read(wait_s)
        *lines, self._rest = self._rest.split(b"\n")
        return [text for line in lines if (text := line.decode()) != ALIVE]

    def _read(self, wait_s: float) -> None:
        ready, _, _ = select.select([self._fd], [], [], wait_s)
        if ready:
            heard = os.read(self._fd, 65536)
            if not heard:
                raise ScriptGone("the connection to the script that started this has ended")
            self._rest += heard
            self._heard_at = time.monotonic()
        elif time.monotonic() - self._heard_at > self._silence_s:
            raise ScriptGone(f"nothing was heard for {self._silence_s:.0f} s of the script that started this")


def exit_on_signals() -> None:
    """End in good order on the first SIGTERM, SIGINT or SIGHUP; later ones do not disturb the cleaning up."""
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sig, _exit_once)


def _exit_once(signum: int, frame: FrameType | None) -> NoReturn:
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sig, signal.SIG_IGN)
    raise SystemExit(128 + signum)
