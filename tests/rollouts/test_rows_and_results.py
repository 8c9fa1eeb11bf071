"""From a row to a request, and from an answer to a line of output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_vllm.errors import ConfigError
from local_vllm.rollouts.results import Engine, Stamps, Timings, Tokens, finished, output_line, timings, verified
from local_vllm.rollouts.rows import agent_row, checked_input, lines

STAMPS = Stamps(4, 2, 1, Timings(1.5), Tokens(3, 5), Engine("a", "m"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.text().filter(lambda key: not key.startswith("_ng_") and key not in ("reward", "response"))


def line_of(row: dict[str, Any], answer: str) -> dict[str, Any]:
    sent = agent_row(json.dumps(row).encode(), "a", {})
    line = output_line(verified(answer.encode()), sent.fields, STAMPS)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    return json.loads(line, object_pairs_hook=without_doubles)


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _ in pairs}) == len(pairs), "a key stands in it twice"
    return dict(pairs)


def answered(row: dict[str, Any], **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 3, "output_tokens": 5}
    return {**row, "response": {"usage": usage}, "reward": 0.5, **more}


# A busy machine takes its time, now and then.
@settings(deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_every_key_of_a_row_stands_unchanged_in_its_line(extra: dict[str, Any], indent: int | None, ascii: bool) -> None:
    row = {**extra, "responses_create_params": {"input": "hi"}}
    line = line_of(row, json.dumps(answered(row), indent=indent, ensure_ascii=ascii))

    assert {key: line[key] for key in row} == row
    assert line["reward"] == 0.5 and line["_ng_task_index"] == 4


def test_what_an_agent_changes_or_forgets_of_a_row_is_put_right() -> None:
    row = {"responses_create_params": {}, "mine": {"x": 1}, "id": 7}
    line = line_of(row, json.dumps(answered({"responses_create_params": {"input": "new"}, "mine": "changed"})))

    assert (line["mine"], line["id"], line["responses_create_params"]) == ({"x": 1}, 7, {"input": "new"})


def test_stamps_of_an_earlier_collection_are_not_sent_and_not_kept() -> None:
    row = {"responses_create_params": {}, "_ng_task_index": 99, "reward": 0.0, "response": {"old": True}}
    sent = agent_row(json.dumps(row).encode(), "a", {})
    assert "_ng_task_index" not in json.loads(sent.body)

    line = line_of(row, json.dumps(answered(row)))
    assert (line["_ng_task_index"], line["reward"]) == (4, 0.5) and "old" not in line["response"]


def test_an_answer_goes_into_its_line_byte_by_byte() -> None:
    answer = '{"responses_create_params":{},"response":{"output":[ 1.50, "\\u00e9" ]},"reward":1}'
    row = agent_row(b'{"responses_create_params":{}}', "a", {})
    assert output_line(verified(answer.encode()), row.fields, STAMPS).startswith(answer[:-1].encode() + b',"_ng_')


def test_a_row_that_nothing_changes_is_sent_byte_by_byte() -> None:
    line = b'{"responses_create_params" : {"input": "\\u00e9"}, "n": 1.0}'
    assert agent_row(line, "a", {}).body is line


def test_a_line_of_output_is_read_again() -> None:
    row = {"responses_create_params": {}}
    line = output_line(verified(json.dumps(answered(row)).encode()), {}, STAMPS)
    read = finished(line)

    assert (read.task, read.rollout, read.reward, read.tokens, read.engine) == (4, 2, 0.5, Tokens(3, 5), Engine("a", "m"))


NO_ROLLOUT = {
    "not JSON": "<html>",
    "a list": "[]",
    "no reward": '{"responses_create_params": {}, "response": {}}',
    "a reward that is null": '{"responses_create_params": {}, "response": {}, "reward": null}',
    "a reward that is text": '{"responses_create_params": {}, "response": {}, "reward": "1"}',
    "a reward that is NaN": '{"responses_create_params": {}, "response": {}, "reward": NaN}',
    "no response": '{"responses_create_params": {}, "reward": 1}',
    "a response that is text": '{"responses_create_params": {}, "response": "hi", "reward": 1}',
    "latin-1": '{"responses_create_params": {}, "response": {"x": "caf\xe9"}, "reward": 1}',
    "cut": '{"responses_create_params": {}, "response": {}, "rew',
}


@pytest.mark.parametrize("answer", NO_ROLLOUT.values(), ids=NO_ROLLOUT)
def test_an_answer_that_is_no_rollout_is_found_out(answer: str) -> None:
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        verified(answer.encode("latin-1"))


TIMINGS = {
    "model;dur=812.1, tools;dur=3.0, verify;dur=0.4, total;dur=900": Timings(1.0, 0.1, 0.8121, 0.003, 0.0004),
    "total;dur=2000": Timings(1.0, 0.0),
    "": Timings(1.0),
    "nonsense;dur=x,model": Timings(1.0),
}


@pytest.mark.parametrize(("header", "expected"), TIMINGS.items())
def test_timings_are_ours_and_those_of_the_header(header: str, expected: Timings) -> None:
    assert timings(1.0, header) == expected


def test_blank_lines_are_no_rows_and_the_limit_may_be_more_than_there_are(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\n{"responses_create_params": {}, "n": 0}\r\n  \n{"responses_create_params": {}, "n": 1}')
    read = checked_input(file, limit=99, agent="a", earlier_rows=0)

    assert read.rows == 2
    assert [json.loads(line)["n"] for line in lines(file, read.rows)] == [0, 1]


def test_the_digest_is_of_the_rows_that_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"responses_create_params": {{}}, "n": {n}}}\n' for n in range(5)))
    three = checked_input(file, limit=3, agent="a", earlier_rows=0)
    five = checked_input(file, limit=None, agent="a", earlier_rows=3)

    assert three.digest == five.earlier_digest != five.digest


WRONG = {
    "no file": (None, "cannot be read"),
    "nothing in it": ("", "has no rows"),
    "no agent_ref": ('{"responses_create_params": {}}', "or give +agent_name="),
    "an agent_ref without a name": ('{"responses_create_params": {}, "agent_ref": {}}', "or give +agent_name="),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_an_input_that_cannot_be_rolled_out_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        checked_input(file, limit=None, agent=None, earlier_rows=0)


def test_ten_rows_that_are_none_are_told_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("no\n" * 100)
    with pytest.raises(ConfigError) as refused:
        checked_input(file, limit=None, agent="a", earlier_rows=0)
    assert len(refused.value.problems) == 10


DEEP = b'{"responses_create_params": {}, "x": %s%s}' % (b"[" * 50_000, b"]" * 50_000)
NO_ROWS = {
    "latin-1": (b'{"responses_create_params": {"input": "caf\xe9"}}', {}, "is not UTF-8"),
    "a key in latin-1": (b'{"responses_create_params": {}, "caf\xe9": 1}', {}, "is not UTF-8"),
    "a number that is too large": (b'{"responses_create_params": {"top_p": 1e400}}', {"n": 1}, "Number out of range"),
    "too deep": (DEEP, {}, "is nested too deeply"),
}


@pytest.mark.parametrize(("line", "params", "told"), NO_ROWS.values(), ids=NO_ROWS)
def test_a_row_that_could_not_be_sent_is_told_with_its_line_before_anything_is(
    tmp_path: Path, line: bytes, params: dict[str, Any], told: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"responses_create_params": {}}\n' + line + b"\n")
    with pytest.raises(ConfigError) as refused:
        checked_input(file, limit=None, agent="a", earlier_rows=0, params=params)
    [problem] = refused.value.problems
    assert problem.path == f"{file}:2" and told in problem.message
