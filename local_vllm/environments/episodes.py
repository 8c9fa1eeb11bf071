"""A resources server at work: its rows are read, its methods called, and what they raise gets a name.

The methods themselves are the environment's, and HTTP is left to `resources_server`.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Raw
from pydantic import TypeAdapter, ValidationError

from local_vllm.environments.failures import PASSED_ON, EnvironmentFailure, raised_in
from local_vllm.environments.rollout import Rollout, Verdict
from local_vllm.environments.rows import (
    REQUEST,
    RESPONSE,
    Fields,
    InputRow,
    encode,
    fields_of,
    output_row,
    same_value,
)
from local_vllm.environments.tools import Result, tools_of, unknown_tool
from local_vllm.errors import RequestError

if TYPE_CHECKING:
    from local_vllm.environments.resources_server import ResourcesServer

Answer = TypeVar("Answer")


class Episodes:
    """What the rollouts of one resources server ask of it. Raises TypeError for tools that cannot be ones."""

    def __init__(self, server: ResourcesServer, are_seeded: bool) -> None:
        self._server = server
        self._tools = tools_of(type(server))
        self._row: TypeAdapter[Any] = TypeAdapter(server.Row)
        self.tool_names = tuple(self._tools)
        # Whether anything could be in a session that a later call finds there.
        self.have_sessions = (
            are_seeded or type(server).Session is not dict or any(tool.takes_session for tool in self._tools.values())
        )
        self.definitions = encode([tool.definition for tool in self._tools.values()])

    async def begin(self, row: InputRow, session: Any) -> None:
        """Seed a session. Raises RequestError for a row that the environment cannot use."""
        seeding = self._server.seed_session(self._read(row), session)
        await self._guarded("seed_session", seeding)

    async def call(self, name: str, arguments: str | bytes, session: Any) -> Result:
        """Call a tool. Whatever goes wrong in it is text for the model."""
        tool = self._tools.get(name)
        if tool is None:
            return unknown_tool(name, self.tool_names)
        return await tool.call(self._server, arguments, session)

    async def verify(self, row: InputRow, response: bytes, session: Any) -> bytes:
        """The output row of a finished rollout. Raises EnvironmentFailure when there is no verdict."""
        rollout = Rollout(self._read(row), session, request=row.fields[REQUEST], response=response)
        verdict = await self._guarded("verify", self._verdict(rollout))
        self._check_against_row(verdict, row.fields)
        return output_row(row.fields, response, verdict)

    async def _verdict(self, rollout: Rollout[Any, Any]) -> Fields:
        verdict = await self._server.verify(rollout)
        if not isinstance(verdict, Verdict):
            raise TypeError(f"it has to return a Verdict, and returned {type(verdict).__name__}")
        return fields_of(verdict.model_dump_json().encode(), "verdict")

    async def _guarded(self, method: str, running: Awaitable[Answer]) -> Answer:
        try:
            return await running
        except PASSED_ON:
            raise
        except Exception as error:
            raise raised_in(f"{self._server.name}.{method}", error) from error

    def _read(self, row: InputRow) -> Any:
        """The row as the environment's `Row`."""
        try:
            return self._row.validate_json(row.body)
        except ValidationError as problem:
            raise _bad_row(self._server.name, problem) from problem

    def _check_against_row(self, verdict: Fields, row: Fields) -> None:
        for name, value in verdict.items():
            if name in (REQUEST, RESPONSE) or _contradicts(name, value, row):
                where = f"{self._server.name}.verify"
                message = f"{where} returned `{name}`, which the row has with another value: rename it"
                raise EnvironmentFailure(message, code="verdict_field_taken")


def _contradicts(name: str, value: Raw, row: Fields) -> bool:
    """Keys of the row stand unchanged in the output; the reward is ours."""
    return name != "reward" and name in row and not same_value(row[name], value)


def _bad_row(server: str, problem: ValidationError) -> RequestError:
    first = problem.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "row"
    shown = msgspec.json.encode(first["input"], enc_hook=str).decode()[:200]
    found = "" if first["type"] == "missing" else f", got {shown}"
    message = f"The row is none for {server}: '{where}': {first['msg']}{found}."
    return RequestError(message, param=where, code="invalid_row")
