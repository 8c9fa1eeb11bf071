"""One question to the judge: the request for it, and the verdict that its answer ends with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from local_vllm.environments import EnvironmentFailure, Rollout
from local_vllm.errors import RequestError, UpstreamError
from local_vllm.serving.neighbours import Model
from local_vllm.serving.replies import Refused

_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the judge was asked and said. `swapped`: the generated answer stood first."""

    swapped: bool
    verdict_label: str
    responses_create_params: dict[str, Any]
    response: dict[str, Any]

    def as_fields(self) -> dict[str, Any]:
        return asdict(self)


class Judge:
    """A model server that is asked to compare two answers. `labels`: for equal, and for not equal."""

    def __init__(
        self,
        model: Model,
        *,
        system: str,
        template: str,
        labels: tuple[str, str],
        params: Mapping[str, Any],
    ) -> None:
        self._model = model
        self._system = system
        self._template = template
        self._params = {name: value for name, value in params.items() if name != "input"}
        # The longer first: one label may be a part of the other.
        self._labels = re.compile("|".join(map(re.escape, sorted(labels, key=len, reverse=True))))

    async def compare(
        self, question: str, expected: str, generated: str, *, swapped: bool = False
    ) -> Evaluation:
        """Raises UpstreamError for an answer without a verdict, and what a model server raises."""
        first, second = (generated, expected) if swapped else (expected, generated)
        prompt = self._template.format(question=question, expected_answer=first, generated_answer=second)
        request = self._request(prompt)
        answer = await self._ask(msgspec.json.encode(request))
        said = Rollout(None, None, request=msgspec.Raw(b"{}"), response=answer)
        return Evaluation(swapped, self._verdict(said), request, msgspec.json.decode(answer))

    def _request(self, prompt: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        if self._system:
            messages.insert(0, {"role": "system", "content": self._system})
        return {"store": False, **self._params, "input": messages}

    async def _ask(self, request: bytes) -> bytes:
        """A request that the judge refuses is no fault of the row, so it may not be answered as one."""
        try:
            return await self._model.respond(request, {})
        except Refused as refused:
            if refused.reply.status >= 500 or refused.reply.status == 429:
                raise
            raise self._refused(refused) from refused
        except RequestError as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> EnvironmentFailure:
        message = f"The judge {self._model.name} refused its request: {error}"
        return EnvironmentFailure(message, code="judge_refused")

    def _verdict(self, said: Rollout[None, None]) -> str:
        """The last label: a judge may speak of both before it decides, so one that was cut off has not decided."""
        labels = self._labels.findall(said.text)
        if said.status == "completed" and labels:
            return str(labels[-1])
        why = "gave none of its labels" if said.status == "completed" else f"did not finish ({said.status})"
        message = f"The judge {self._model.name} {why}; it said: {said.text[-_SHOWN:] or 'nothing'}"
        raise UpstreamError(message, status=502, code="judge_gave_no_verdict")
