"""Sessions and vLLM's own prefix caches: two engines that somebody else runs, and one of ours with two ranks.

All behind one `ng_run`: a VLLMModel with two HTTP replicas over the two, and a LocalVLLMModel with DP=2.
"""

from __future__ import annotations

import os
import re
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import httpx
import pytest
from bare_engine import MODEL, BareEngine, bare_engines
from engine_answers import SERVER, engine_url
from ng_run_process import KEY, NgRun, running

from local_vllm.cpu.default_model import build_default_model

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

# Blocks of vLLM's CPU engine have 128 tokens, and 64 KiB with this model. A session comes to 17 blocks: three of
# them fit into a cache, five do not.
CONTEXT_TOKENS, CACHE_BYTES = 4096, 60 * 65_536
SESSIONS, TURNS, FIRST_BYTES, FURTHER_BYTES = 5, 4, 1500, 130

FRONT = """
front:
  responses_api_models:
    vllm_model:
      model: local-vllm-default
      base_url: {urls}
      num_workers: 2
"""
COUNTER = re.compile(r'^vllm:(\w+)_total\{[^}]*engine="(\d+)"[^}]*\} (\S+)', re.MULTILINE)


@dataclass(frozen=True)
class Slot:
    """One prefix cache: that of an engine, or of one of its ranks."""

    engine_url: str
    rank: int = 0

    def counted(self, name: str) -> float:
        text = urllib.request.urlopen(self.engine_url.removesuffix("/v1") + "/metrics", timeout=60).read().decode()
        return sum(float(v) for found, rank, v in COUNTER.findall(text) if (found, int(rank)) == (name, self.rank))


@dataclass(frozen=True)
class Served:
    """A server, and the caches behind it."""

    url: str
    slots: Sequence[Slot]

    def counted(self, name: str) -> list[float]:
        return [slot.counted(name) for slot in self.slots]


class Session:
    """A conversation that grows, from `first_bytes`. `stick` says what its client sends along to be known by."""

    def __init__(self, served: Served, stick: str, first_bytes: int = 150) -> None:
        self.url = f"{served.url}/v1/responses"
        self.id, self.stick = uuid.uuid4().hex, stick
        self.client = httpx.Client(timeout=120, verify=False)  # reading certificates takes longer than a turn
        self.items = [{"role": "system", "content": self._long(first_bytes)}]

    def turn(self) -> httpx.Response:
        self.items.append({"role": "user", "content": "ECHO:yes"})
        body: dict[str, object] = {"model": MODEL, "input": self.items}
        headers = {}
        if self.stick == "prompt_cache_key":
            body["prompt_cache_key"] = self.id
        elif self.stick == "x-session-id":
            headers["x-session-id"] = self.id
        elif self.stick == "nothing":
            self.client.cookies.clear()
        answer = self.client.post(self.url, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        self.items.append({"role": "assistant", "content": self._long(FURTHER_BYTES)})
        return answer

    def _long(self, size: int) -> str:
        """Text of which no other session has a beginning; the engine makes one token of each byte."""
        return ((self.id + " ") * (size // 33 + 1))[:size]


@dataclass(frozen=True)
class Stage:
    """All that runs."""

    run: NgRun
    engines: list[BareEngine]
    front: Served
    ranks: Served


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("sessions")
    model = build_default_model(folder / "model")
    flags = {"max-model-len": CONTEXT_TOKENS, "kv-cache-memory-bytes": CACHE_BYTES, "max-num-seqs": 16}
    with bare_engines(2, model, folder, dtype="float32", **flags) as engines:
        (folder / "front.yaml").write_text(FRONT.format(urls=[engine.url for engine in engines]))
        (folder / "ranks.yaml").write_text(SERVER.format(name="ranks", key=KEY, size=1))
        of_ranks = "++ranks.local_vllm_model.vllm_serve_kwargs."
        words = [f"{of_ranks}{name.replace('-', '_')}={value}" for name, value in flags.items()]
        words += [f"{of_ranks}data_parallel_size=2", "+config_paths=[front.yaml, ranks.yaml]"]
        with running(folder, *words) as run:
            for engine in engines:
                engine.wait_until_ready()
            keep_a_cpu_free(run, engines)
            of_front = [Slot(engine.url) for engine in engines]
            of_ranks = [Slot(engine_url(run, "ranks"), rank) for rank in range(2)]
            yield Stage(run, engines, Served(f"{run.url}/front", of_front), Served(f"{run.url}/ranks", of_ranks))


def keep_a_cpu_free(run: NgRun, engines: list[BareEngine]) -> None:
    run.let_others_go_before_engines()
    rest = sorted(os.sched_getaffinity(0))[:-1] or [0]
    for engine in engines:
        for process in engine.processes()[1:]:
            process.cpu_affinity(rest)


def hit_rate(served: Served, stick: str) -> tuple[float, list[float]]:
    """The share of prompt tokens that was found in a cache, and how many tokens each cache was asked for."""
    queries, hits = served.counted("prefix_cache_queries"), sum(served.counted("prefix_cache_hits"))
    sessions = [Session(served, stick, FIRST_BYTES) for _ in range(SESSIONS)]
    for _ in range(TURNS):
        for session in sessions:
            session.turn()
    asked = [after - before for after, before in zip(served.counted("prefix_cache_queries"), queries)]
    return (sum(served.counted("prefix_cache_hits")) - hits) / sum(asked), asked


@pytest.mark.parametrize("which", ["front", "ranks"], ids=["two engines", "two ranks"])
def test_sessions_that_stick_find_their_prefix_in_the_cache(stage: Stage, which: str) -> None:
    served: Served = getattr(stage, which)
    without, _ = hit_rate(served, "nothing")
    rate, asked = hit_rate(served, "cookie")
    print(f"{which}: hit rate {rate:.2f} with cookies, {without:.2f} without; tokens asked for: {asked}")
    assert min(asked) > 0.3 * sum(asked), "both caches were used"
    assert rate > 0.6
    assert rate > 1.5 * without


@pytest.mark.parametrize("which", ["front", "ranks"], ids=["two engines", "two ranks"])
@pytest.mark.parametrize("stick", ["x-session-id", "prompt_cache_key", "cookie"])
def test_all_turns_of_a_session_go_to_one_cache(stage: Stage, which: str, stick: str) -> None:
    served: Served = getattr(stage, which)
    before = served.counted("prefix_cache_queries")
    session = Session(served, stick)
    for _ in range(3):
        session.turn()
    asked = [after - earlier for after, earlier in zip(served.counted("prefix_cache_queries"), before)]
    # An idle rank is asked for a token by its watcher now and then: that is one token of a prompt.
    assert sorted(each > 30 for each in asked) == [False, True], asked


def test_new_sessions_of_both_replicas_are_spread_evenly(stage: Stage) -> None:
    before = stage.front.counted("request_success")
    for _ in range(8):
        Session(stage.front, "cookie").turn()
    taken = [after - earlier for after, earlier in zip(stage.front.counted("request_success"), before)]
    assert sum(taken) == 8
    assert min(taken) >= 3, "each replica alternates"


def test_when_an_engine_is_killed_its_sessions_move_and_the_others_stay(stage: Stage) -> None:
    left, right = stage.front.slots
    sessions = [Session(stage.front, "cookie") for _ in range(6)]
    at_left = [session for session in sessions if asks(left, session.turn)]
    assert 0 < len(at_left) < len(sessions)
    stage.engines[1].kill()
    for session in sessions:
        moves = "set-cookie" in session.turn().headers
        assert moves == (session not in at_left)
        assert "set-cookie" not in session.turn().headers, "it stays where it is now"
    with pytest.raises(OSError):
        right.counted("request_success")


def asks(slot: Slot, act: Callable[[], object]) -> bool:
    before = slot.counted("request_success")
    act()
    return slot.counted("request_success") > before
