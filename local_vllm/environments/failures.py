"""What goes wrong in an environment's own code: an error of the rollout, or a sentence for the model.

The status of every other failure is the table's in `serving.replies`.
"""

from __future__ import annotations

import logging

from local_vllm.errors import EngineUnavailable, LocalVLLMError, RequestError, UpstreamError
from local_vllm.serving.replies import Refused

logger = logging.getLogger("local_vllm.environments")


class ToolError(Exception):
    """Raise it in a tool: its text goes to the model. Any other exception in a tool is logged too."""


class EnvironmentFailure(LocalVLLMError):
    """An environment's code failed, so there is no reward: HTTP 500 with `code`, say an exception's class."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


# Not the model's doing: a tool that raises one of these fails the rollout.
NOT_FOR_THE_MODEL = (EngineUnavailable, UpstreamError, Refused, EnvironmentFailure)
# What an environment may raise about others, or has named already: it keeps the status that it has.
PASSED_ON = (RequestError, *NOT_FOR_THE_MODEL)


def raised_in(where: str, error: Exception) -> EnvironmentFailure:
    """What an exception in `where` (`my_env.verify`) is for the rollout; the log gets it whole."""
    kind = type(error).__name__
    logger.error("%s raised %s", where, kind, exc_info=error)
    return EnvironmentFailure(f"{where} raised {kind}: {_one_line(error)}", code=kind)


def told(error: BaseException) -> str:
    """An exception as a model is told of it."""
    text = _one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
