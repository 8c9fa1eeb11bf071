"""The client, the checks of answers and the stand-in engine: a fast wrong answer is an error."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmarks.answers import problem
from benchmarks.closed_loop import offer
from benchmarks.measuring import Pace, interleaved
from benchmarks.processes import CannotMeasure, started
from benchmarks.scenarios import BURST, CONVERSATION, SCENARIOS, SHORT, STREAM, TRAIN_MULTI, TRAIN_SMALL
from benchmarks.stand_in_engine import Connection
from benchmarks.targets import ENGINE, Target

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789"
SHORTER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n01234"
BROKEN = b"HTTP/1.1 500 Oh\r\ncontent-length: 3\r\n\r\nwhy"
CLOSING = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\n0"


class Scripted(asyncio.Protocol):
    """Answers each request with the next of `answers`, the last one over and over; an empty one closes."""

    answers: list[bytes]

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self._transport.write(answer)
        if not answer or b"connection: close" in answer:
            self._transport.close()


@asynccontextmanager
async def listening(protocol: Callable[[], asyncio.Protocol]) -> AsyncIterator[str]:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def scripted(*answers: bytes) -> AsyncIterator[str]:
    Scripted.answers = list(answers)
    async with listening(Scripted) as url:
        yield url


async def asked(scenario: Any, api: str = "chat", **more: Any) -> bytes:
    """The stand-in's answer."""
    async with listening(Connection) as url:
        done = await offer(f"{url}/v1/chat/completions", scenario.body(api, "m"), 1, requests=1, **more)
    assert not done.error
    return done.answer


# ---- the client


async def test_so_many_requests_are_sent_as_are_asked_for() -> None:
    async with scripted(OK) as url:
        done = await offer(url, b"{}", 3, requests=10)
    assert (len(done.latencies_s), done.errors, done.answer) == (10, 0, b"0123456789")


async def test_requests_are_sent_for_a_time() -> None:
    async with scripted(OK) as url:
        done = await offer(url, b"{}", 2, seconds=0.1)
    assert len(done.latencies_s) > 2 and 0.1 <= done.took_s < 5


async def test_a_server_that_closes_its_connections_is_asked_on_others() -> None:
    async with scripted(CLOSING) as url:
        done = await offer(url, b"{}", 2, requests=6)
    assert (len(done.latencies_s), done.errors) == (6, 0)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (BROKEN, "status 500: why"),
        (SHORTER, "5 bytes where others have 10"),
        (b"", "the connection broke off"),
        (b"nonsense\r\n\r\n", "not HTTP"),
    ],
)
async def test_another_answer_is_an_error(answer: bytes, error: str) -> None:
    async with scripted(OK, answer, OK) as url:
        done = await offer(url, b"{}", 1, requests=3)
    assert (len(done.latencies_s), done.errors) == (2, 1)
    assert error in done.error


async def test_nobody_who_answers_is_an_error_and_no_hang() -> None:
    async with scripted(OK) as url:
        pass
    done = await offer(url, b"{}", 2, requests=1000)
    assert not done.latencies_s and done.errors and done.error


def test_a_wrong_answer_is_a_problem_of_the_target(tmp_path: Path) -> None:
    """Every answer of a server that knows no model server is the same, and wrong."""
    code = (
        "import asyncio, sys\n"
        "class P(asyncio.Protocol):\n"
        "    def connection_made(self, t): self.t = t\n"
        f"    def data_received(self, data): self.t.write({OK!r})\n"
        "async def main():\n"
        "    server = await asyncio.get_running_loop().create_server(P, '127.0.0.1', 0)\n"
        "    print(server.sockets[0].getsockname()[1], flush=True)\n"
        "    await server.serve_forever()\n"
        "asyncio.run(main())\n"
    )
    with started([sys.executable, "-c", code], tmp_path / "log.txt") as it:
        it.wait_until(lambda: it.text().endswith("\n"), 30)
        url = f"http://127.0.0.1:{int(it.text())}/v1/responses"
        target = Target("other", "responses", url, url, (it.pid,))
        found = interleaved([target], SHORT, Pace(1, 0.05), connections=1)["other"]
    assert found.problem and "cannot be read" in found.problem


def test_what_does_not_come_up_is_told_with_what_it_printed(tmp_path: Path) -> None:
    with started([sys.executable, "-c", "print('no such thing')"], tmp_path / "log.txt") as it:
        with pytest.raises(CannotMeasure, match="no such thing"):
            it.wait_until_answers("http://127.0.0.1:9/", 30)


def test_what_is_below_a_process_ends_with_it(tmp_path: Path) -> None:
    below = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
    start = f"subprocess.Popen([sys.executable, '-c', {below!r}], start_new_session=True)"
    code = f"import subprocess, sys; {start}.wait()"
    with started([sys.executable, "-c", code], tmp_path / "log.txt") as it:
        it.wait_until(lambda: it.text().endswith("\n"), 30)
        child = psutil.Process(int(it.text().split()[0]))
    assert not child.is_running()


# ---- answers


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_the_stand_ins_own_answer_is_right(scenario: Any) -> None:
    assert problem(scenario, "chat", await asked(scenario)) is None


async def test_as_in_vllm_ids_and_log_probabilities_come_when_they_are_asked_for() -> None:
    answer = json.loads(await asked(TRAIN_SMALL, "responses"))
    assert answer["prompt_token_ids"] is None and answer["choices"][0]["logprobs"] is None
    assert problem(TRAIN_SMALL, "chat", json.dumps(answer).encode())


async def test_a_stream_with_a_pace_takes_its_time() -> None:
    done = []
    for scenario in (BURST, STREAM):
        async with listening(Connection) as url:
            done.append(await offer(f"{url}/v1/chat/completions", scenario.body("chat", "m"), 1, requests=1))
    burst, paced = done
    assert burst.answer == paced.answer
    assert paced.took_s > 160 * 0.009


def response(**more: Any) -> dict[str, Any]:
    tokens = {"prompt_token_ids": [1] * 500, "generation_token_ids": [2] * 200, "generation_log_probs": [-0.5] * 200}
    return {"status": "completed", "output": [{"type": "message", **tokens, **more}]}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, None),
        ({"generation_token_ids": [2] * 199}, "[500, 199, 200] instead of [500, 200, 200]"),
        ({"prompt_token_ids": None}, "[0, 200, 200] instead"),
        ({"generation_log_probs": []}, "[500, 200, 0] instead"),
        ({"type": "reasoning"}, "items: ['reasoning'] instead of ['message']"),
    ],
)
def test_token_ids_are_counted(change: dict[str, Any], complaint: str | None) -> None:
    found = problem(TRAIN_SMALL, "responses", json.dumps(response(**change)).encode())
    assert found is None if complaint is None else complaint in (found or "")


def test_a_stream_without_its_end_is_wrong() -> None:
    kinds = ["response.created", "response.output_item.added", *["response.output_text.delta"] * 160]
    events = "".join(f"event: {kind}\ndata: {json.dumps({'type': kind})}\n\n" for kind in kinds)
    assert problem(BURST, "responses", events.encode()) == "no response.output_item.done"


# ---- scenarios


def test_the_chat_request_has_the_turns_tools_and_token_ids_of_the_other() -> None:
    chat = json.loads(CONVERSATION.body("chat", "m"))
    roles = [message["role"] for message in chat["messages"]]
    assert (roles.count("tool"), len(chat["tools"]), roles[0]) == (10, 4, "system")
    multi = json.loads(TRAIN_MULTI.body("chat", "m"))
    assert [len(each["prompt_token_ids"]) for each in multi["messages"] if "prompt_token_ids" in each] == [4000, 6000]
    assert multi["return_token_ids"] is True


def test_a_target_is_asked_by_the_name_of_its_server() -> None:
    target = Target(ENGINE, "responses", "http://a", "http://b", ())
    url, body = target.asked(TRAIN_SMALL)
    assert (url, json.loads(body)["model"]) == ("http://b", "training_model")
