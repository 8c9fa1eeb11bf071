"""The input of a collection: rows of a JSONL file, checked once in full and then streamed, never loaded.

What is sent to an agent for a row is made here; who sends it, and when, is collect.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from local_vllm.errors import ConfigError, Problem
from local_vllm.rollouts.disk import reading

PARAMS = "responses_create_params"
# Ours in an output row, so a row that is the output of an earlier collection loses its own.
STAMPS = frozenset(
    {"_ng_task_index", "_ng_rollout_index", "_ng_attempt", "_ng_timings", "_ng_tokens", "_ng_engine"}
)
PROBLEMS_SHOWN = 10
# What a line that is no row, or that no agent could be sent, raises when it is read.
NO_ROW = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_READ_AHEAD = 1 << 20

Fields = dict[str, msgspec.Raw]
_fields = msgspec.json.Decoder(Fields)


class _AgentRef(msgspec.Struct):
    name: str


class _Head(msgspec.Struct):
    responses_create_params: Fields


class _HeadWithAgent(_Head):
    agent_ref: _AgentRef


class _ReadHead(msgspec.Struct):
    responses_create_params: dict[str, Any]


class _ReadHeadWithAgent(_ReadHead):
    agent_ref: _AgentRef


_head_with_agent = msgspec.json.Decoder(_HeadWithAgent)
# By whether each row names its agent, and whether its request fields have to be read to be merged with others.
_HEADS = {
    (False, False): msgspec.json.Decoder(_Head),
    (True, False): _head_with_agent,
    (False, True): msgspec.json.Decoder(_ReadHead),
    (True, True): msgspec.json.Decoder(_ReadHeadWithAgent),
}


@dataclass(frozen=True, slots=True)
class Input:
    """What is to be rolled out: the first `rows` rows of a file, blank lines not counted.

    Attributes:
        digest: of those rows. earlier_digest: of the first `earlier_rows` of them, where so many were found.
        agents: every agent that they are for.
    """

    path: Path
    rows: int
    digest: str
    agents: frozenset[str]
    earlier_digest: str | None


class Row(NamedTuple):
    """One row as an agent gets it. `fields` are its own, unchanged."""

    agent: str
    fields: Fields
    body: bytes


def checked_input(
    path: Path, *, limit: int | None, agent: str | None, earlier_rows: int, params: Mapping[str, Any] = {}
) -> Input:
    """Read every row that will be rolled out, with `params` over its own fields, once and in bounded memory.

    Raises ConfigError when it cannot be read, or with the line number of each row that is none, up to the tenth.
    """
    digest, earlier = hashlib.blake2b(digest_size=16), None
    rows, agents, problems = 0, set() if agent is None else {agent}, []
    decode: Callable[[bytes], Any] = _HEADS[agent is None, bool(params)].decode
    for number, line in _numbered_rows(path, limit):
        try:
            head = decode(line)
            line.decode()
        except NO_ROW as error:
            problems.append(Problem(f"{path}:{number}", _why_no_row(error, agent)))
            if len(problems) == PROBLEMS_SHOWN:
                break
            continue
        if agent is None:
            agents.add(head.agent_ref.name)
        digest.update(line)
        digest.update(b"\n")
        rows += 1
        if rows == earlier_rows:
            earlier = digest.hexdigest()
    if not rows and not problems:
        problems.append(Problem(str(path), "has no rows"))
    if problems:
        raise ConfigError(problems)
    return Input(path, rows, digest.hexdigest(), frozenset(agents), earlier)


def _why_no_row(error: Exception, agent: str | None) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8, as JSON has to be: {error.reason} at its byte {error.start + 1}"
    if isinstance(error, RecursionError):
        return "is nested too deeply to be read"
    if not isinstance(error, msgspec.ValidationError):
        return f"is not JSON: {error}"
    hint = ", or give +agent_name=..." if agent is None and "agent_ref" in str(error) else ""
    return f"is no row: {error}; a row is an object with a {PARAMS} object" + (
        f" and an agent_ref with a name{hint}" if hint else ""
    )


def _numbered_rows(path: Path, limit: int | None) -> Iterator[tuple[int, bytes]]:
    try:
        file = path.open("rb", buffering=_READ_AHEAD)
    except OSError as error:
        raise ConfigError([Problem("input_jsonl_fpath", f"{path} cannot be read: {error.strerror}")]) from error
    with file:
        numbered = ((number, line) for number, raw in enumerate(file, 1) if (line := raw.strip()))
        yield from islice(numbered, limit)


def lines(path: Path, rows: int) -> Iterator[bytes]:
    """The first `rows` rows, as they stand in the file. Raises RunError when it cannot be read any more."""
    with reading(path), path.open("rb", buffering=_READ_AHEAD) as file:
        yield from islice(filter(None, map(bytes.strip, file)), rows)


def agent_row(line: bytes, agent: str | None, params: Mapping[str, Any]) -> Row:
    """A row for its agent, with `params` over its own request fields.

    Raises one of NO_ROW when the line is no row any more.
    """
    fields = _fields.decode(line)
    name = agent if agent is not None else _head_with_agent.decode(line).agent_ref.name
    stamped = STAMPS & fields.keys()
    for stamp in stamped:
        del fields[stamp]
    if not params and not stamped:
        return Row(name, fields, line)
    sent: dict[str, Any] = dict(fields)
    if params:
        sent[PARAMS] = over(msgspec.json.decode(fields[PARAMS]), params)
    return Row(name, fields, msgspec.json.encode(sent))


def over(own: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` over `own`; mappings in both are merged."""
    merged = dict(own)
    for key, value in given.items():
        inner = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        merged[key] = over(inner, value) if both else value
    return merged
