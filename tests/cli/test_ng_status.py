"""`ng_status`: what it says of the records on this machine, without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from timed_command import timed

from local_vllm.cli.status import run
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import Placement, plan_placements
from local_vllm.plan.topology import PackStrategy, Topology
from local_vllm.processes.tree import start_time
from local_vllm.runs import record as records
from local_vllm.runs.record import RunRecord, ServerRecord
from local_vllm.runs.status import StatusReport, together

NG_STATUS = Path(sys.executable).parent / "ng_status"
NODES = Cluster(tuple(Node(f"n{i}", f"10.0.0.{i}", 4, 4, 8, 8) for i in (1, 2)))
PLACEMENTS = plan_placements(
    NODES, [Topology("policy", 2, 2, 1, PackStrategy.STRICT), Topology("judge", 1, 2, 1, PackStrategy.STRICT)]
)
AFTER = Cluster(tuple(replace(node, gpus_free=free) for node, free in zip(NODES.nodes, (0, 1), strict=True)))


def server(name: str, placement: Placement, state: str = "healthy", **more: str) -> ServerRecord:
    known = {"engine_url": "http://10.0.0.1:21000/v1"} if state == "healthy" else {}
    known |= {"node_address": placement.master_address, "log_path": f"/logs/{name}.log"}
    url = f"http://127.0.0.1:11000/{name}/v1"
    values = {"state": state, "placement": placement, **known, **more}
    return ServerRecord(name, "local_vllm_model", f"org/{name}", url, **values)


def judge(state: str = "healthy", **more: str) -> ServerRecord:
    return server("judge", PLACEMENTS[1], state, **more)


POLICY = server("policy", PLACEMENTS[0])
PROXY = ServerRecord("thin", "local_vllm_model_proxy", "that of policy", "http://127.0.0.1:11000/thin/v1")
Keep = Callable[..., RunRecord]


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Puts the record of a run on disk, by default one of this very process."""

    def kept(*servers: ServerRecord, **more: object) -> RunRecord:
        pid = os.getpid()
        record = RunRecord(
            "7f3a1b2c", pid, start_time(pid), time.time() - 125, str(tmp_path / "volatile"), "/logs",
            url="http://127.0.0.1:11000", ray_address="10.0.0.1:6379", servers=servers, cluster=AFTER,
        )  # fmt: skip
        record = replace(record, **more)
        records.write(record)
        return record

    return kept


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def text(*words: str, status: int = 0) -> str:
        assert run(words) == status
        return capsys.readouterr().out

    return text


HEALTHY = """\
Run 7f3a1b2c: healthy, pid {pid}, begun 2 min ago
gateway  http://127.0.0.1:11000/v1
Ray      10.0.0.1:6379 (private)
logs     /logs

10.0.0.1  A0 A0 A1 A1
10.0.0.2  B0 B0 .  #

A   policy: DP 2 x TP 2, strict, 4 GPUs on 1 node, rank 0 on 10.0.0.1
B   judge: DP 1 x TP 2, strict, 2 GPUs on 1 node, rank 0 on 10.0.0.2
.   free: 1
#   in use by others: 1

A  policy  healthy
   model   org/policy
   URL     http://127.0.0.1:11000/policy/v1
   engine  http://10.0.0.1:21000/v1  (on 10.0.0.1)
   log     /logs/policy.log

thin  local_vllm_model_proxy
   model   that of policy
   URL     http://127.0.0.1:11000/thin/v1

B  judge  healthy
   model   org/judge
   URL     http://127.0.0.1:11000/judge/v1
   engine  http://10.0.0.1:21000/v1  (on 10.0.0.2)
   log     /logs/judge.log
"""


def test_a_run_is_shown_with_its_servers_its_placement_and_where_everything_is(keep: Keep, shown) -> None:
    keep(POLICY, PROXY, judge())

    assert shown() == HEALTHY.format(pid=os.getpid())


def test_without_runs_one_line_says_so(shown) -> None:
    assert shown() == "No runs on this machine; ng_run starts one.\n"


STATES = {
    "healthy": (["healthy", "healthy"], {}),
    "starting": (["healthy", "starting"], {}),
    "starting, its engines ready before Serve": (["healthy", "healthy"], {"url": ""}),
    "degraded": (["failed", "healthy"], {}),
    "failed": (["failed", "stopped"], {}),
    "stopping": (["stopping", "healthy"], {}),
    "killed": (["healthy", "healthy"], {"started": 1}),
    "healthy, elsewhere": (["healthy", "healthy"], {"host": "another-host", "started": 1}),
}


@pytest.mark.parametrize(("states", "more"), STATES.values(), ids=STATES)
def test_the_state_of_a_run_follows_from_its_engines_and_its_process(
    keep: Keep, shown, request: pytest.FixtureRequest, states: list[str], more: dict[str, object]
) -> None:
    keep(server("policy", PLACEMENTS[0], states[0]), judge(states[1]), **more)
    expected = request.node.callspec.id.partition(",")[0]

    assert shown().startswith(f"Run 7f3a1b2c: {expected}, pid")
    assert json.loads(shown("--json"))["runs"][0]["state"] == expected


def test_a_dead_process_makes_its_run_killed(keep: Keep, shown) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    keep(POLICY, pid=ended.pid, started=start_time(ended.pid))
    assert shown().startswith("Run 7f3a1b2c: healthy")
    ended.communicate(b"\n")

    text = shown()
    assert text.startswith("Run 7f3a1b2c: killed")
    assert "the next ng_run cleans up after it" in text


def test_an_engine_that_failed_says_why_on_lines_of_its_own(keep: Keep, shown) -> None:
    keep(POLICY, judge("failed", detail="vLLM ended with status 1\nOSError: no such parser"))

    why = "   why     vLLM ended with status 1\n           OSError: no such parser\n"
    assert f"B  judge  failed\n{why}   model" in shown()


def test_an_engine_that_starts_says_what_it_does(keep: Keep, shown) -> None:
    keep(judge("starting", detail="loading weights"))

    text = shown()
    assert "A  judge  starting\n   doing   loading weights\n" in text
    assert "engine  no address yet  (on 10.0.0.2)" in text


def test_the_placement_is_drawn_before_the_cluster_has_been_read(keep: Keep, shown) -> None:
    keep(POLICY, judge(), cluster=None)

    assert "\n10.0.0.1  A0 A0 A1 A1\n10.0.0.2  B0 B0\n\nA   policy" in shown()


def test_json_is_what_the_report_says_it_is(keep: Keep, shown) -> None:
    keep(POLICY, PROXY, judge("failed", detail="why"))
    text = shown("--json")
    report = TypeAdapter(StatusReport).validate_json(text)

    assert TypeAdapter(StatusReport).dump_python(report, mode="json") == json.loads(text)
    (one,) = json.loads(text)["runs"]
    assert [(s["name"], s["state"], s["detail"]) for s in one["servers"]] == [
        ("policy", "healthy", ""), ("thin", "", ""), ("judge", "failed", "why")
    ]  # fmt: skip
    assert one["servers"][0]["placement"] == {
        "strategy": "strict",
        "data_parallel_size": 2,
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "ranks": [[{"address": "10.0.0.1", "gpus": 2}], [{"address": "10.0.0.1", "gpus": 2}]],
    }
    assert one["servers"][1]["placement"] is None
    assert one["nodes"][1] == {"address": "10.0.0.2", "gpus_total": 4, "gpus_free": 1, "accelerator": None}


def test_several_runs_are_shown_the_oldest_first(keep: Keep, shown) -> None:
    keep(POLICY, run_id="young", begun_at=time.time())
    keep(judge(), run_id="older", begun_at=time.time() - 9000)

    text = shown()
    assert text.startswith("Run older: healthy")
    assert "begun 2 h ago" in text
    assert text.index("Run older") < text.index("Run young")


def test_what_a_run_says_on_its_cluster_beats_its_record(keep: Keep) -> None:
    written = keep(judge("starting"))
    said, other = replace(written, servers=(judge(),)), replace(written, run_id="other", begun_at=1.0)

    assert together([written], [said, other]) == [other, said]


@pytest.mark.parametrize("word", ["--jsn", "+ray_addres=a:1", "+ray_address=", "x"])
def test_a_word_that_means_nothing_ends_with_status_2(capsys: pytest.CaptureFixture[str], word: str) -> None:
    assert run([word]) == 2
    assert f"`{word}` means nothing here" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_named_and_the_runs_here_are_shown(
    keep: Keep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(POLICY)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")

    assert run([]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("Run 7f3a1b2c: healthy")
    assert "no Ray cluster answers at 127.0.0.1:1" in said.err


def test_the_command_answers_at_once_and_loads_neither_ray_nor_hydra(
    keep: Keep, tmp_path: Path
) -> None:
    keep(POLICY, PROXY, judge())
    done, took = timed([NG_STATUS], tmp_path, os.environ)
    assert done.stdout == HEALTHY.format(pid=os.getpid())
    assert took < 0.8
    program = (
        "import sys; from local_vllm.cli.status import run; run(sys.argv[1:])\n"
        "heavy = ('ray', 'vllm', 'torch', 'hydra', 'omegaconf', 'aiohttp', 'numpy')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stderr == "[]\n"


def test_the_help_tells_the_states_and_the_exit_status(shown) -> None:
    text = shown("--help")
    for part in ("--json", "+ray_address=", "degraded", "killed", "Exit status"):
        assert part in text
