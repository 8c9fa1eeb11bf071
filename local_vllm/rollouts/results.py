"""What an agent's answer becomes: one line of output, and the few numbers that are kept of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from local_vllm.rollouts.rows import PARAMS, STAMPS, Fields

# What a rollout adds to its row, and so may replace in it.
ADDED = frozenset({PARAMS, "response", "reward"})

_fields = msgspec.json.Decoder(Fields)
_encode = msgspec.json.Encoder().encode


class Tokens(msgspec.Struct, frozen=True):
    """Tokens of a rollout, over all its turns."""

    input: int = 0
    output: int = 0


class Timings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Seconds of the attempt that succeeded. `queued_s` is what lay outside of the agent."""

    total_s: float
    queued_s: float | None = None
    model_s: float | None = None
    tools_s: float | None = None
    verify_s: float | None = None


class Engine(msgspec.Struct, frozen=True):
    """Who answered."""

    agent: str
    model_server: str | None = None


class Stamps(msgspec.Struct, frozen=True):
    """What stands in an output row beside the agent's answer."""

    task: int = msgspec.field(name="_ng_task_index")
    rollout: int = msgspec.field(name="_ng_rollout_index")
    attempt: int = msgspec.field(name="_ng_attempt")
    timings: Timings = msgspec.field(name="_ng_timings")
    tokens: Tokens | None = msgspec.field(name="_ng_tokens")
    engine: Engine = msgspec.field(name="_ng_engine")


class Finished(msgspec.Struct, frozen=True):
    """What is read of a line of output when a collection is resumed."""

    task: int = msgspec.field(name="_ng_task_index")
    rollout: int = msgspec.field(name="_ng_rollout_index")
    reward: float
    engine: Engine = msgspec.field(name="_ng_engine")
    tokens: Tokens | None = msgspec.field(name="_ng_tokens", default=None)


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0


class _Response(msgspec.Struct):
    usage: _Usage | None = None


_reward = msgspec.json.Decoder(float)
_response = msgspec.json.Decoder(_Response)
_finished = msgspec.json.Decoder(Finished)


class Verified(msgspec.Struct, frozen=True):
    """An agent's answer, found to be a rollout."""

    body: bytes
    fields: Fields
    reward: float
    tokens: Tokens | None


def verified(body: bytes) -> Verified:
    """The answer of `POST /run`. Raises ValueError or msgspec.MsgspecError, saying why, when it is no rollout."""
    body.decode()
    fields = _fields.decode(body)
    if missing := [key for key in (PARAMS, "response", "reward") if key not in fields]:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    try:
        reward = _reward.decode(fields["reward"])
    except msgspec.ValidationError as error:
        raise ValueError(f"its reward is no number: {bytes(fields['reward'])[:80].decode(errors='replace')}") from error
    usage = _response.decode(fields["response"]).usage
    return Verified(body, fields, reward, Tokens(usage.input_tokens, usage.output_tokens) if usage else None)


def output_line(answer: Verified, row: Fields, stamps: Stamps) -> bytes:
    """A line of output with its newline. What the row had and a rollout does not add stands in it unchanged."""
    fields = answer.fields
    foreign = {key: raw for key, raw in row.items() if key not in ADDED and fields.get(key) != raw}
    if foreign or not STAMPS.isdisjoint(fields):
        body = _encode({key: raw for key, raw in (fields | foreign).items() if key not in STAMPS})
    else:
        body = answer.body.strip()
    # Outside of strings, where JSON has none, a line break is only white space.
    whole = body if b"\n" not in body and b"\r" not in body else body.replace(b"\n", b" ").replace(b"\r", b" ")
    return b"%b,%b\n" % (whole[:-1], _encode(stamps)[1:])


def finished(line: bytes) -> Finished:
    """A line of output, read again. Raises msgspec.MsgspecError when it is none."""
    return _finished.decode(line)


def timings(total_s: float, server_timing: str) -> Timings:
    """From our own clock and the agent's `server-timing` header (`model;dur=812.1, total;dur=816`, in ms)."""
    stated = dict(_durations_s(server_timing))
    inside = stated.pop("total", None)
    queued = None if inside is None else round(max(0.0, total_s - inside), 4)
    known = {f"{name}_s": stated[name] for name in ("model", "tools", "verify") if name in stated}
    return Timings(round(total_s, 4), queued, **known)


def _durations_s(header: str) -> Iterable[tuple[str, float]]:
    for part in header.split(","):
        name, _, duration = part.partition(";dur=")
        try:
            yield name.strip(), round(float(duration) / 1000, 4)
        except ValueError:
            continue


def failure_line(entry: Mapping[str, object]) -> bytes:
    """A line of the failures sidecar."""
    return _encode(entry) + b"\n"
