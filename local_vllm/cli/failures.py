"""How a command tells that it has failed, and the status with which it then exits."""

from __future__ import annotations

import sys

from local_vllm.errors import ConfigError, LocalVLLMError


def told(command: str, error: LocalVLLMError, *, heading: str = "") -> int:
    """Print what went wrong on stderr; a wrong configuration, whose status is 2, has a line for each problem."""
    if isinstance(error, ConfigError):
        print(f"{command}:{heading}", *(f"  {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return 2
    print(f"{command}: {error}", file=sys.stderr)
    return 1
