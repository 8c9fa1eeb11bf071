"""The processes that are measured, and those that they need: started, waited for, and ended in any case."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import STDOUT

import psutil

from local_vllm.processes.tree import die_with_parent

SCRIPTS = Path(__file__).resolve().parents[1]
COMMANDS = Path(sys.executable).parent
NG_RUN_READY = "Stop: Ctrl-C"
STOP_DEADLINE_S = 60.0


class CannotMeasure(Exception):
    """Something that is to be measured did not come up or did not do its work; the message has what it printed."""


class Started:
    """A process whose output goes to a file."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> None:
        """The environment is ours without Ray's variables, and `environment`."""
        self._log = log
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with log.open("wb") as output:
            self.begun = time.monotonic()
            self.process = psutil.Popen(
                list(map(str, command)),
                cwd=log.parent,
                env=env | environment,
                stdout=output,
                stderr=STDOUT,
                start_new_session=True,
                preexec_fn=functools.partial(die_with_parent, os.getpid(), signal.SIGTERM),
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_until(self, fact: Callable[[], bool], deadline_s: float) -> float:
        """Seconds from the start until `fact` came true."""
        while not fact():
            if self.process.poll() is not None or time.monotonic() - self.begun > deadline_s:
                name = " ".join(self.process.args[:3])
                raise CannotMeasure(f"{name} did not come up. What it printed:\n{self.text()[-4000:]}")
            time.sleep(0.05)
        return time.monotonic() - self.begun

    def wait_until_answers(self, url: str, deadline_s: float = 30.0) -> float:
        return self.wait_until(lambda: answers(url), deadline_s)

    def end(self) -> None:
        """Ask it to end; what is then left of it and below it is killed."""
        everything = [self.process]
        with suppress(psutil.NoSuchProcess):
            everything += self.process.children(recursive=True)
            self.process.terminate()
        with suppress(psutil.TimeoutExpired):
            self.process.wait(STOP_DEADLINE_S)
        for each in everything:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(everything, STOP_DEADLINE_S)


def answers(url: str) -> bool:
    with suppress(OSError):
        return urllib.request.urlopen(url, timeout=5).status == 200
    return False


@contextmanager
def started(command: Sequence[str | Path], log: Path, **environment: str) -> Iterator[Started]:
    it = Started(command, log, environment)
    try:
        yield it
    finally:
        it.end()


@contextmanager
def module(name: str, folder: Path, port: int, *words: str) -> Iterator[Started]:
    """A server of this folder that answers on `port`."""
    command = [sys.executable, "-m", f"benchmarks.{name}", str(port), *words]
    path = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))
    with started(command, folder / f"{name}-{port}.log", PYTHONPATH=path) as it:
        it.wait_until_answers(f"http://127.0.0.1:{port}/health")
        yield it


@contextmanager
def ng_run(folder: Path, *words: str, deadline_s: float = 300.0, **environment: str) -> Iterator[tuple[Started, float]]:
    """An `ng_run` that is ready, and the seconds that it took. `folder` is where it runs and keeps its state."""
    (folder / "env.yaml").touch()
    environment = {"XDG_STATE_HOME": str(folder / "state"), **environment}
    with started([COMMANDS / "ng_run", *words], folder / "ng_run.log", **environment) as it:
        yield it, it.wait_until(lambda: NG_RUN_READY in it.text(), deadline_s)
