"""A judge, itself a model server, says whether an answer means the same as the expected one.

A judge that fails, or gives no verdict, is an error of the rollout: that says nothing about the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

from local_vllm.config.environment_settings import ModelServer
from local_vllm.environments import ResourcesServer, ResourcesServerSettings, Rollout, Verdict
from local_vllm.environments.equivalence_llm_judge.judge import Evaluation, Judge
from local_vllm.environments.equivalence_llm_judge.prompt import (
    EQUAL,
    NOT_EQUAL,
    SYSTEM_MESSAGE,
    TEMPLATE,
    template_problems,
)
from local_vllm.errors import Problem
from local_vllm.serving.neighbours import Neighbours


class JudgeSettings(ResourcesServerSettings):
    """What the config can say."""

    judge_model_server: ModelServer = Field(description="The model server that judges, by name.")
    judge_responses_create_params: dict[str, Any] = Field(
        {}, description="Request fields for the judge, such as temperature and max_output_tokens."
    )
    judge_system_message: str = Field(SYSTEM_MESSAGE, description="Its system message; empty for none.")
    judge_prompt_template: str = Field(
        TEMPLATE, description="What it is asked, with {question}, {expected_answer} and {generated_answer}."
    )
    judge_prompt_template_fpath: str | None = Field(None, description="A file with the template instead.")
    judge_equal_label: str = Field(EQUAL, min_length=1, description="How the judge says: the same.")
    judge_not_equal_label: str = Field(NOT_EQUAL, min_length=1, description="How it says: not the same.")
    check_twice_swap: bool = Field(
        False,
        description="Ask again with the answers swapped when it says equal; both times have to be equal.",
    )
    reward_if_swap_fails: float = Field(0.0, description="The reward when the second verdict is not equal.")
    question_extract_regex: str | None = Field(
        None, description="What of the user's message is the question: the first group, or the whole match."
    )
    response_extract_regex: str | None = Field(
        None, description="What of the model's text is its answer: the last match; none is an empty answer."
    )

    @model_validator(mode="before")
    @classmethod
    def _template_of_file(cls, raw: Any) -> Any:
        """The text travels to where rollouts are verified; the file need not be there."""
        path = raw.get("judge_prompt_template_fpath") if isinstance(raw, Mapping) else None
        if not isinstance(path, str) or not Path(path).is_file():
            return raw
        return {**raw, "judge_prompt_template": Path(path).read_text(encoding="utf-8")}

    @classmethod
    def further_problems(cls, raw: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().further_problems(raw)
        yield from _template_problems(raw)
        for key in ("question_extract_regex", "response_extract_regex"):
            if isinstance(pattern := raw.get(key), str) and (problem := _regex_problem(pattern)):
                yield Problem(key, f"is no regular expression: {problem}")
        if raw.get("judge_equal_label", EQUAL) == raw.get("judge_not_equal_label", NOT_EQUAL):
            yield Problem("judge_not_equal_label", "must be another text than judge_equal_label")


class JudgeRow(BaseModel):
    """What a row has to hold. Without `question` it is the last user message of the row's request."""

    expected_answer: str = Field(min_length=1)
    question: str | None = None


class EquivalenceLLMJudge(ResourcesServer):
    Settings = JudgeSettings
    Row = JudgeRow

    def __init__(self, name: str, settings: JudgeSettings, neighbours: Neighbours) -> None:
        super().__init__(name, settings, neighbours)
        self._judge = Judge(
            neighbours.model(settings.judge_model_server.name),
            system=settings.judge_system_message,
            template=settings.judge_prompt_template,
            labels=(settings.judge_equal_label, settings.judge_not_equal_label),
            params=settings.judge_responses_create_params,
        )

    async def verify(self, rollout: Rollout[JudgeRow, dict[str, Any]]) -> Verdict:
        """1 where the judge says equal. A model that answered nothing needs no judge."""
        generated = _extracted(rollout.text, self.settings.response_extract_regex)
        if not generated.strip():
            return self._decided([], 0.0)
        question = rollout.row.question or rollout.question
        question = _extracted(question, self.settings.question_extract_regex)
        return await self._judged(question, rollout.row.expected_answer, generated)

    async def _judged(self, question: str, expected: str, generated: str) -> Verdict:
        first = await self._judge.compare(question, expected, generated)
        if not self._is_equal(first):
            return self._decided([first], 0.0)
        if not self.settings.check_twice_swap:
            return self._decided([first], 1.0)
        second = await self._judge.compare(question, expected, generated, swapped=True)
        reward = 1.0 if self._is_equal(second) else self.settings.reward_if_swap_fails
        return self._decided([first, second], reward)

    def _is_equal(self, evaluation: Evaluation) -> bool:
        return bool(evaluation.verdict_label == self.settings.judge_equal_label)

    def _decided(self, evaluations: list[Evaluation], reward: float) -> Verdict:
        is_equal = bool(evaluations) and all(map(self._is_equal, evaluations))
        return Verdict(
            reward=reward,
            verdict="equal" if is_equal else "not_equal",
            judge_evaluations=[evaluation.as_fields() for evaluation in evaluations],
        )


def _template_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    path, text = raw.get("judge_prompt_template_fpath"), raw.get("judge_prompt_template")
    if path is not None and text is not None:
        both = "is given beside judge_prompt_template: give one of the two"
        yield Problem("judge_prompt_template_fpath", both)
    elif isinstance(path, str) and not Path(path).is_file():
        yield Problem("judge_prompt_template_fpath", f"names {path}, which is no file in {Path.cwd()}")
    elif isinstance(path, str):
        for problem in template_problems(Path(path).read_text(encoding="utf-8")):
            yield Problem("judge_prompt_template_fpath", problem)
    elif isinstance(text, str):
        for problem in template_problems(text):
            yield Problem("judge_prompt_template", problem)


def _regex_problem(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return None


def _extracted(text: str, pattern: str | None) -> str:
    """The last match: its first group where it has one."""
    if pattern is None:
        return text
    found = list(re.finditer(pattern, text, re.DOTALL))
    if not found:
        return ""
    return str(found[-1][1] if found[-1].re.groups else found[-1][0]) or ""
