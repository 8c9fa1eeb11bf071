"""`quickstart_run.py [--once] [OVERRIDE ...]`: ng_run as a child, the demonstration, serving until Ctrl-C.

scripts/quickstart calls it once .venv is there. What is asked and shown is quickstart_demo.py's part.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

import httpx
from quickstart_demo import DemonstrationFailed, demonstrate
from rich.console import Console

from local_vllm.cluster.machine import is_port_free, reachable_host
from local_vllm.config.compose import load_run_config
from local_vllm.errors import ConfigError
from local_vllm.processes.tree import die_with_parent

NG_RUN = Path(sys.executable).with_name("ng_run")
POLL_S = 0.5
STOP_DEADLINE_S = 60.0
SECOND_STOP_DEADLINE_S = 30.0


class NgRun:
    """`ng_run` in a session of its own, so that a Ctrl-C reaches it once, from us. It does not outlive us."""

    def __init__(self, words: list[str]) -> None:
        self.asked_to_stop = False
        command = [str(NG_RUN), *words]
        with_us = functools.partial(die_with_parent, os.getpid(), signal.SIGTERM)
        # It would inherit a SIGINT that is ignored here, as in the background of a script.
        _on_stop_signals(signal.SIG_DFL)
        self._process = subprocess.Popen(  # noqa: PLW1509 (this process has one thread)
            command, start_new_session=True, preexec_fn=with_us
        )
        _on_stop_signals(self._forward)

    def __enter__(self) -> NgRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.status() is None:
            self.stop()

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        self.asked_to_stop = True
        self._process.send_signal(signum)

    def status(self) -> int | None:
        """The exit status as a shell gives it; None while it runs."""
        status = self._process.poll()
        return 128 - status if status is not None and status < 0 else status

    def wait(self) -> int:
        """The exit status, once it has ended by itself or by a signal that we passed on."""
        self._process.wait()
        return self.status() or 0

    def stop(self) -> int:
        """As one Ctrl-C does, and after a while a second one; returns the exit status."""
        for deadline_s in (STOP_DEADLINE_S, SECOND_STOP_DEADLINE_S):
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                _say(f"ng_run has not ended {deadline_s:.0f} s after it was asked to")
            else:
                return self.status() or 0
        self._process.kill()
        return self.wait()

    def until_ready(self, health_url: str) -> bool:
        """Whether it came to answer requests; False when it ended. Its own deadlines for a start hold."""
        while self.status() is None:
            if not self.asked_to_stop and _answers_200(health_url):
                return True
            time.sleep(POLL_S)
        return False


def _on_stop_signals(handler: signal.Handlers | Callable[[int, FrameType | None], None]) -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, handler)


def main(argv: list[str]) -> int:
    once = "--once" in argv
    words = [word for word in argv if word != "--once"]
    root_url = gateway_url(words)
    with NgRun(words) as ng_run:
        if not ng_run.until_ready(f"{root_url}/health"):
            return _ended_early(ng_run, once)
        worked = _demonstration_works(f"{root_url}/v1", ng_run)
        if not once:
            _invite(f"{root_url}/v1", ng_run)
            return ng_run.wait()
        status = ng_run.wait() if ng_run.asked_to_stop else ng_run.stop()
    if status != 0:
        _say(f"ng_run ended with status {status}")
    return status or (0 if worked else 1)


def gateway_url(words: list[str]) -> str:
    """Where `ng_run` will answer. What it will refuse it says best itself: then it takes our place."""
    try:
        settings = load_run_config(words, cwd=Path.cwd()).settings
    except ConfigError:
        _become_ng_run(words)
    if not is_port_free(settings.http_host, settings.http_port):
        _become_ng_run(words)  # else we would take the answers of whoever has the port for its own
    return f"http://{reachable_host(settings.http_host)}:{settings.http_port}"


def _become_ng_run(words: list[str]) -> NoReturn:
    os.execv(NG_RUN, [str(NG_RUN), *words])


def _answers_200(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _ended_early(ng_run: NgRun, once: bool) -> int:
    status = ng_run.wait()
    if not ng_run.asked_to_stop:
        _say(f"ng_run ended with status {status} before it was ready")
    return status or (1 if once else 0)


def _demonstration_works(base_url: str, ng_run: NgRun) -> bool:
    try:
        demonstrate(base_url, Console())
    except DemonstrationFailed as error:
        if not ng_run.asked_to_stop:
            _say(str(error))
        return False
    return True


def _invite(base_url: str, ng_run: NgRun) -> None:
    if ng_run.status() is None and not ng_run.asked_to_stop:
        print(f"\nServing at {base_url} until Ctrl-C.", flush=True)


def _say(line: str) -> None:
    print(f"quickstart: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
