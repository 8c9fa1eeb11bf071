"""The smallest environment: no tools, and a reward for saying what is expected."""

from __future__ import annotations

from pydantic import BaseModel

from local_vllm.environments import ResourcesServer, Rollout, Verdict


class TaskRow(BaseModel):
    """What a row has to hold."""

    expected_answer: str


class SimpleTask(ResourcesServer):
    Row = TaskRow

    async def verify(self, rollout: Rollout[TaskRow, dict[str, object]]) -> Verdict:
        """1 for an answer that has the expected words in it, as words of their own."""
        said = f" {_words(rollout.text)} "
        return Verdict(reward=f" {_words(rollout.row.expected_answer)} " in said)


def _words(text: str) -> str:
    """Lower case, and nothing but letters, digits and single blanks."""
    return " ".join("".join(letter if letter.isalnum() else " " for letter in text.casefold()).split())
