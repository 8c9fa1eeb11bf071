"""Which servers a collection and `ng_call` ask: those of a run that lives, or those at a stated address."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from collector_process import AgentProcess, row, write_rows, written
from stand_in_agent import AGENT

from local_vllm.cli.call import run as ng_call
from local_vllm.cli.collect import run as ng_collect_rollouts
from local_vllm.processes.tree import start_time
from local_vllm.rollouts.files import Paths
from local_vllm.runs import record as records
from local_vllm.runs.addresses import models_behind
from local_vllm.runs.record import RunRecord, ServerRecord

Keep = Callable[..., RunRecord]

JUDGE = ServerRecord("judge", "vllm_model", "org/judge", "")
POLICY = ServerRecord("policy_model", "local_vllm_model", "org/policy", "")
WEATHER = ServerRecord("weather", "simple_weather", "", "", kind="resources_servers", uses=("judge",))
THE_AGENT = ServerRecord(
    AGENT, "simple_agent", "", "", kind="responses_api_agents", uses=("policy_model", "weather")
)
SERVERS = (POLICY, JUDGE, WEATHER, THE_AGENT)


@pytest.fixture
def keep(tmp_path: Path, served: AgentProcess) -> Keep:
    """Puts the record of a run on disk whose servers are at the stand-in, by default one of this very process."""

    def kept(run_id: str = "7f3a1b2c", **more: object) -> RunRecord:
        pid = os.getpid()
        values = {"pid": pid, "started": start_time(pid), "servers": SERVERS, **more}
        values.setdefault("serve_url", f"http://127.0.0.1:{served.port}")
        record = RunRecord(
            run_id=run_id, begun_at=time.time(), volatile=str(tmp_path / "volatile"), logs="/logs", **values
        )
        records.write(record)
        return record

    return kept


def collect(tmp_path: Path, *more: str) -> int:
    rows = write_rows(tmp_path / "rows.jsonl", [row(0), row(1)])
    return ng_collect_rollouts([f"+input_jsonl_fpath={rows}", f"+output_jsonl_fpath={tmp_path / 'o.jsonl'}", *more])


def test_the_agent_of_a_living_run_is_found(keep: Keep, tmp_path: Path) -> None:
    keep()
    keep("00000001", started=1, serve_url="http://127.0.0.1:9")

    assert collect(tmp_path, f"+agent_name={AGENT}") == 0
    assert len(written(tmp_path / "o.jsonl")) == 2


def test_the_models_behind_the_agent_are_kept_and_another_one_is_not_gone_on_with(
    keep: Keep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep()
    assert collect(tmp_path, f"+agent_name={AGENT}", "+limit=1") == 0
    kept = json.loads(Paths(tmp_path / "o.jsonl").collection.read_text())
    assert kept["identity"]["models"] == ["org/judge", "org/policy"]

    other = ServerRecord("policy_model", "local_vllm_model", "org/other", "")
    keep(servers=(other, JUDGE, WEATHER, THE_AGENT))
    assert collect(tmp_path, f"+agent_name={AGENT}", "+resume_from_cache=true") == 2
    assert "the models: org/judge, org/policy then, org/judge, org/other now" in capsys.readouterr().err


def test_only_the_models_that_an_agent_can_reach_are_behind_it() -> None:
    alone = ServerRecord("alone", "vllm_model", "org/alone", "")
    proxy = ServerRecord("thin", "local_vllm_model_proxy", "that of policy_model", "", uses=("policy_model",))
    agent = ServerRecord("a", "simple_agent", "", "", kind="responses_api_agents", uses=("thin", "weather"))

    assert models_behind((*SERVERS, alone, proxy, agent), ["a"]) == ("org/judge", "org/policy")


REFUSED = {
    "no run": ({}, [], f"+agent_name={AGENT}", "no ng_run is running on this machine: start one"),
    "a dead run": ({"started": 1}, None, f"+agent_name={AGENT}", "no ng_run is running on this machine"),
    "a run that starts": ({"serve_url": ""}, None, f"+agent_name={AGENT}", "no ng_run is serving yet"),
    "a misspelled agent": ({}, None, "+agent_name=weather_agnet", f"has a server `weather_agnet`; did you mean `{AGENT}`?"),
    "a model": ({}, None, "+agent_name=judge", f"`judge` is one of responses_api_models, and rollouts are made by agents: the agents there are {AGENT}"),
}  # fmt: skip


@pytest.mark.parametrize(("run", "servers", "words", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_found_is_told(
    keep: Keep, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    run: dict[str, object], servers: list[str] | None, words: str, message: str,
) -> None:  # fmt: skip
    if servers is None:
        keep(**run)
    assert collect(tmp_path, words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


def test_an_agent_of_two_runs_has_to_be_chosen(
    keep: Keep, served: AgentProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep()
    keep("00000002", serve_url="http://127.0.0.1:9")

    assert collect(tmp_path, f"+agent_name={AGENT}") == 1
    assert "several runs have a server" in capsys.readouterr().err
    assert collect(tmp_path, f"+agent_name={AGENT}", f"+http_port={served.port}") == 0
    kept = json.loads(Paths(tmp_path / "o.jsonl").collection.read_text())
    assert kept["identity"]["models"] == ["org/judge", "org/policy"]


def test_a_stated_port_where_nobody_listens_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(tmp_path, f"+agent_name={AGENT}", "+http_port=1") == 1
    assert "No connection to http://127.0.0.1:1/" in capsys.readouterr().err


def test_an_agent_that_the_config_files_do_not_have_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect(tmp_path, f"+agent_name={AGENT}", "+config_paths=[quickstart.yaml]") == 2
    assert f"agent_name: `{AGENT}` is no agent of these config files" in capsys.readouterr().err


def test_config_files_of_env_yaml_are_for_when_nothing_runs(
    keep: Keep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "env.yaml").write_text("config_paths: [local_vllm_model.yaml]\npolicy_model_name: org/any\n")
    assert collect(tmp_path, f"+agent_name={AGENT}") == 2
    assert "is no agent of these config files" in capsys.readouterr().err

    keep()
    assert collect(tmp_path, f"+agent_name={AGENT}") == 0


def test_the_rows_are_found_in_the_working_folder(keep: Keep, tmp_path: Path) -> None:
    keep()
    folder = tmp_path / "resources_servers" / "mine" / "data"
    folder.mkdir(parents=True)
    write_rows(folder / "example.jsonl", [row(0)])
    words = ["+input_jsonl_fpath=resources_servers/mine/data/example.jsonl", "+output_jsonl_fpath=results/deep/o.jsonl"]

    assert ng_collect_rollouts([f"+agent_name={AGENT}", *words]) == 0
    assert len(written(tmp_path / "results/deep/o.jsonl")) == 1


def test_a_dry_run_and_an_output_that_is_the_input_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [row(0)])
    words = [f"+input_jsonl_fpath={rows}", f"+output_jsonl_fpath={rows}", "+dry_run=true", f"+agent_name={AGENT}"]
    assert ng_collect_rollouts(words) == 2
    said = capsys.readouterr().err
    assert "dry_run: is for ng_run" in said and f"output_jsonl_fpath: is the input, {rows}" in said


# ng_call


def test_a_call_prints_the_text_and_the_tool_calls_as_they_went(keep: Keep, capsys: pytest.CaptureFixture[str]) -> None:
    keep()

    assert ng_call([f"+agent_name={AGENT}", "What is", "the weather?"]) == 0
    assert capsys.readouterr().out == 'call   get_weather({"city": "Paris"})\nresult 18 degrees\nIt is warm.\n'


def test_a_call_asks_models_too_and_prints_the_whole_response_as_json(
    keep: Keep, capsys: pytest.CaptureFixture[str]
) -> None:
    keep()
    params = ["+responses_create_params.temperature=0", "+responses_create_params.stream=true"]
    words = ["agent_name=policy_model", "--json", *params, "--", "+1 = 2?"]

    assert ng_call(words) == 0
    asked = json.loads(capsys.readouterr().out)["asked"]
    assert asked == {"model": "policy_model", "temperature": 0, "input": "+1 = 2?"}


CALLS = {
    "no text": ([f"+agent_name={AGENT}"], 2, "what to say is missing"),
    "no name": (["hello"], 2, "agent_name: must be given"),
    "a resources server": (["+agent_name=weather", "hello"], 1, "answers no texts"),
    "an error": ([f"+agent_name={AGENT}", "fail"], 1, "answered with status 400: told to fail"),
    "a response that failed": ([f"+agent_name={AGENT}", "give up"], 1, f"{AGENT} failed while it answered: told to give up"),
    "no response": ([f"+agent_name={AGENT}", "no json"], 1, "answered with what is no response"),
    "an unknown name": (["+agent_name=nobody", "hello"], 1, "no running ng_run has a server `nobody`"),
    "an unknown key": (["+agent=x", "hello"], 2, "unknown key"),
}


@pytest.mark.parametrize(("words", "status", "message"), CALLS.values(), ids=CALLS)
def test_a_call_that_cannot_be_made_says_why(
    keep: Keep, capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str
) -> None:
    keep()
    assert ng_call(words) == status
    assert message in capsys.readouterr().err
