"""One rollout's conversation with a model: what it is asked, what it answered, and the tools that it called.

The model's items are cut out of its answers and put into the next request and the result as they are, so that
token ids and log probabilities are what the engine said. When to ask and when to stop is left to the agent.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Raw, Struct

from local_vllm.environments.places import Episode
from local_vllm.environments.rows import Fields, encode, fields_of, on_one_line
from local_vllm.environments.timings import Timings
from local_vllm.errors import UpstreamError
from local_vllm.serving.neighbours import Cookies, Model
from local_vllm.serving.replies import Refused, Reply

# The agent asks for whole answers, and puts the conversation together itself.
_OURS = ("input", "stream", "stream_options")
_OVERFLOW = "context_length_exceeded"
_CALLS = ("function_call", "custom_tool_call")


class Called(Struct, gc=False):
    """A call of a tool, as the model wrote it: `arguments` may be no JSON at all."""

    type: str = "message"
    name: str = ""
    namespace: str | None = None
    call_id: str = ""
    arguments: str = ""


class _Answer(Struct, gc=False):
    output: list[Raw]
    status: str | None = None
    usage: dict[str, Any] | None = None


class _Error(Struct, gc=False):
    code: str | None = None


class _Refusal(Struct, gc=False):
    error: _Error


class _Output(Struct, gc=False):
    type: str
    call_id: str
    output: str
    id: str
    status: str = "completed"


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_call = msgspec.json.Decoder(Called).decode


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of the model: its status (completed, incomplete, failed) and the calls in it."""

    status: str
    calls: Sequence[Called] = ()


@dataclass(frozen=True, slots=True)
class _Stop:
    """Why a conversation ended before the model was done."""

    reason: str
    notes: Mapping[str, str]


@dataclass(slots=True)
class Conversation:
    """`request` are the fields of a Responses request; `tools` are for one that has none itself."""

    model: Model
    episode: Episode
    cookies: Cookies
    request: Fields
    tools: bytes
    timings: Timings = field(default_factory=Timings)
    _head: bytes = b""
    _given: list[bytes | Raw] = field(default_factory=list)
    _output: list[bytes | Raw] = field(default_factory=list)
    _usage: list[dict[str, Any]] = field(default_factory=list)
    _turns: int = 0
    _last: bytes | None = None
    _in_last: int = 0
    _stopped: _Stop | None = None

    def __post_init__(self) -> None:
        kept = {name: value for name, value in self.request.items() if name not in _OURS}
        if _is_absent(kept.get("tools")):
            kept.pop("tools", None)
            if self.tools != b"[]":
                kept["tools"] = Raw(self.tools)
        self._head = encode(kept)[:-1] + (b"," if kept else b"") + b'"input":'
        self._given = _items(self.request.get("input"))

    async def ask(self) -> Turn:
        """Ask the model with all that was said so far. A prompt that does not fit is an incomplete turn."""
        try:
            with self.timings.of("model"):
                answer = await self.model.respond(self._body(), self.cookies)
        except Refused as refused:
            if not _is_overflow(refused.reply):
                raise
            self.stop("max_output_tokens", stopped_by="context_overflow")
            return Turn("incomplete")
        self._last = on_one_line(answer)
        return self._read(self._last)

    def _body(self) -> bytes:
        return b"%s[%s]}" % (self._head, b",".join([*self._given, *self._output]))

    def _read(self, answer: bytes) -> Turn:
        try:
            read = _decode_answer(answer)
            items = [_decode_call(item) for item in read.output]
        except msgspec.DecodeError as problem:
            message = f"The answer of {self.model.name} is no response: {problem}."
            raise UpstreamError(message, status=502, code="bad_gateway") from problem
        self._output += read.output
        self._in_last = len(read.output)
        self._turns += 1
        if read.usage is not None:
            self._usage.append(read.usage)
        return Turn(read.status or "completed", [item for item in items if item.type in _CALLS])

    async def run(self, calls: Sequence[Called]) -> None:
        """Run the calls of one turn beside each other; the results follow in the order of the calls."""
        with self.timings.of("tools"):
            if len(calls) == 1:
                texts = [await self._run(calls[0])]
            else:
                texts = await _beside_each_other([self._run(call) for call in calls])
        self._output += map(_output, calls, texts)

    async def _run(self, call: Called) -> str:
        name = call.name if call.namespace is None else f"{call.namespace}.{call.name}"
        return await self.episode.call(name, call.arguments)

    def add(self, item: Mapping[str, Any]) -> None:
        """Add an item of your own, such as a message of a simulated user."""
        self._output.append(encode(item))

    def stop(self, reason: str, **notes: str) -> None:
        """End as incomplete. `reason` is OpenAI's word for it; `notes` stand in the response's metadata."""
        self._stopped = _Stop(reason, notes)

    def response(self) -> bytes:
        """All turns as one response. With one turn that was not stopped, it is the model's own."""
        if self._last is None:
            return encode(self._finished(_without_answer(self.model.name)))
        if self._stopped is None and self._turns == 1 and len(self._output) == self._in_last:
            return self._last
        return encode(self._finished(fields_of(self._last, "response")))

    def _finished(self, fields: Fields) -> Mapping[str, Any]:
        merged: dict[str, Any] = fields | {"output": Raw(b"[%s]" % b",".join(self._output))}
        if self._usage:
            merged["usage"] = _total(self._usage)
        if self._stopped is not None:
            merged["status"] = "incomplete"
            merged["completed_at"] = None
            merged["incomplete_details"] = {"reason": self._stopped.reason}
            merged["metadata"] = _metadata(fields) | dict(self._stopped.notes)
        return merged


async def _beside_each_other(running: Sequence[Coroutine[Any, Any, str]]) -> list[str]:
    """What all of them return. The first that raises ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in running]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _is_absent(value: Raw | None) -> bool:
    return value is None or bytes(value) == b"null"


def _items(given: Raw | None) -> list[bytes | Raw]:
    """The input as items; a text is a message of the user. What is neither is left to the model server."""
    if given is None:
        return []
    text = bytes(given)
    if text[:1] == b"[":
        return [*msgspec.json.decode(text, type=list[Raw])]
    return [b'{"role":"user","content":%s}' % text]


def _is_overflow(reply: Reply) -> bool:
    try:
        return (
            msgspec.json.decode(reply.body, type=_Refusal).error.code == _OVERFLOW
        )
    except msgspec.DecodeError:
        return False


def _output(call: Called, text: str) -> bytes:
    return encode(_Output(f"{call.type}_output", call.call_id, text, f"fco_{os.urandom(16).hex()}"))


def _total(usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of every count, however deep it stands."""
    total: dict[str, Any] = {}
    for usage in usages:
        for name, value in usage.items():
            if isinstance(value, dict):
                total[name] = _total([total.get(name) or {}, value])
            elif isinstance(value, int | float):
                total[name] = total.get(name, 0) + value
    return total


def _metadata(fields: Fields) -> dict[str, Any]:
    found = msgspec.json.decode(fields["metadata"]) if "metadata" in fields else None
    return found or {}


def _without_answer(model: str) -> Fields:
    """A response to a prompt that the model could not even begin with."""
    fields = {
        "id": f"resp_{os.urandom(16).hex()}",
        "object": "response",
        "created_at": int(time.time()),
        "error": None,
        "instructions": None,
        "metadata": {},
        "model": model,
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": None,
    }
    return {name: Raw(encode(value)) for name, value in fields.items()}
