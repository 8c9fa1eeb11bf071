"""What comes up while a configuration is put together: problems, notices, and whether it is whole."""

from __future__ import annotations

from dataclasses import dataclass, field

from local_vllm.errors import Problem

# How a message begins when nothing was given at all.
REQUIRED = "is required"


@dataclass(slots=True)
class Findings:
    """What has come up so far. `incomplete`: a file could not be read, and what is absent may stand there."""

    problems: list[Problem] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)
    notices: list[str] = field(default_factory=list)
    incomplete: bool = False

    def add(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message))

    def add_absent(self, path: str, message: str) -> None:
        """A problem that a file which could not be read may well solve."""
        self.absent.add(path)
        self.add(path, message)

    def sure(self) -> list[Problem]:
        """The problems that are there whatever the unread files say."""
        if not self.incomplete:
            return self.problems
        return [p for p in self.problems if p.path not in self.absent and not p.message.startswith(REQUIRED)]
