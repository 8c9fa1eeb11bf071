"""Every error that local_vllm raises on purpose.

    LocalVLLMError
    ├── ConfigError          the configuration is wrong; carries every problem found      exit status 2
    ├── PlacementError       the topologies do not fit the cluster                         exit status 1
    ├── ClusterError         Ray or Serve could not be started, joined or reached          exit status 1
    ├── RunError             another run holds a name or a port that this one needs        exit status 1
    ├── EngineError
    │   ├── EngineStartError the engine ended, or met its deadline, before it was ready    exit status 1
    │   ├── EngineLost       the engine was well, and has ended or stalled
    │   └── EngineUnavailable no engine can answer right now                              HTTP 503
    ├── RequestError         a client's request is wrong                                   HTTP 4xx
    └── UpstreamError        the engine did not answer, or answered with an error          HTTP 5xx or its own
"""

from __future__ import annotations

from dataclasses import dataclass


class LocalVLLMError(Exception):
    """Base of everything this package raises on purpose: the message is one line for a person."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration.

    `path` is the dotted path of the key (or a file name with line and column); `message` says what was
    found and what to change.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(LocalVLLMError):
    """The configuration cannot be used. Holds all its problems, so that they are mended in one go."""

    def __init__(self, problems: list[Problem] | tuple[Problem, ...]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PlacementError(LocalVLLMError):
    """The requested topologies do not fit the cluster; the message has the numbers."""


class ClusterError(LocalVLLMError):
    """Ray or Ray Serve could not be started, joined or reached."""


class RunError(LocalVLLMError):
    """Another run, or another program, holds something that this run needs."""


class EngineError(LocalVLLMError):
    """Something about an engine that this package owns."""


class EngineStartError(EngineError):
    """The engine did not become ready; the message ends with the last lines of its log."""


class EngineLost(EngineError):
    """An engine that was well has ended; or it has `stalled`: it generates nothing, though nothing of it has ended."""

    def __init__(self, message: str, *, stalled: bool = False) -> None:
        super().__init__(message)
        self.stalled = stalled


class EngineUnavailable(EngineError):
    """No engine can answer now. `retry_after_s` is None when waiting will not help; `code` is OpenAI's word for it."""

    def __init__(self, message: str, *, retry_after_s: int | None = None, code: str = "engine_unavailable") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.code = code


class RequestError(LocalVLLMError):
    """A request that a client has to change. The fields are those of OpenAI's error object."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.param = param
        self.code = code


class UpstreamError(LocalVLLMError):
    """The engine behind a model server failed: `status` is the HTTP status to answer with."""

    def __init__(self, message: str, *, status: int = 502, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
