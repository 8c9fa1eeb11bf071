"""The judge: what it is asked, what its answer is worth, and that its failures are no rewards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rollout_world import Client, ScriptedEngine, agent, neighbours, says, scripted_engine, served
from stand_in_engine import closed_port

from local_vllm.environments.equivalence_llm_judge.app import EquivalenceLLMJudge, JudgeSettings

ROW = {
    "responses_create_params": {"input": [{"role": "user", "content": "What is {2} + 2?"}]},
    "expected_answer": "four",
}
EQUAL, NOT_EQUAL = "They agree. [[A=B]]", "They differ. [[A!=B]]"


@pytest.fixture
async def judge() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine() as stand_in:
        yield stand_in


@asynccontextmanager
async def judged(policy: ScriptedEngine, judge: ScriptedEngine, **settings: Any) -> AsyncIterator[Client]:
    models = {"policy_model": policy, "judge_model": judge}
    settings = {"judge_model_server": "judge_model"} | settings
    async with served(agent(neighbours(models, EquivalenceLLMJudge, settings))) as client:
        yield client


async def rolled_out(policy: ScriptedEngine, judge: ScriptedEngine, **settings: Any) -> dict[str, Any]:
    async with judged(policy, judge, **settings) as client:
        answer = await client.post("/run", ROW)
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    return found


@pytest.mark.parametrize(
    ("said", "reward", "verdict"),
    [
        (EQUAL, 1.0, "equal"),
        (NOT_EQUAL, 0.0, "not_equal"),
        ("Is it [[A=B]] or [[A!=B]]? It is [[A=B]]", 1.0, "equal"),
        ("At first [[A=B]], and yet [[A!=B]].", 0.0, "not_equal"),
    ],
)
async def test_the_last_label_of_the_judge_is_its_verdict(
    engine: ScriptedEngine, judge: ScriptedEngine, said: str, reward: float, verdict: str
) -> None:
    judge.script = [says(said)]
    done = await rolled_out(engine, judge)
    assert (done["reward"], done["verdict"]) == (reward, verdict)


async def test_a_label_in_the_judges_reasoning_is_no_verdict(
    engine: ScriptedEngine, judge: ScriptedEngine
) -> None:
    turn = says(EQUAL)
    turn["choices"][0]["message"]["reasoning"] = "Could it be [[A!=B]]?"
    judge.script = [turn]
    assert (await rolled_out(engine, judge))["reward"] == 1.0


async def test_the_judge_sees_the_question_and_both_answers_as_they_are(
    engine: ScriptedEngine, judge: ScriptedEngine
) -> None:
    engine.script = [says("4 {expected_answer}")]
    judge.script = [says(EQUAL)]
    done = await rolled_out(
        engine, judge, judge_system_message="Grade.", judge_responses_create_params={"top_p": 0.5}
    )
    body = judge.asked[0]["body"]
    system, user = body["messages"]
    assert (system["content"], body["top_p"]) == ("Grade.", 0.5)
    assert (
        "Question:\nWhat is {2} + 2?\n\nAnswer A:\nfour\n\nAnswer B:\n4 {expected_answer}\n"
        in user["content"]
    )
    evaluation = done["judge_evaluations"][0]
    assert evaluation["verdict_label"] == "[[A=B]]"
    assert evaluation["responses_create_params"]["input"][1]["content"] == user["content"]
    assert evaluation["response"]["store"] is False
    assert evaluation["response"]["output"][0]["content"][0]["text"] == EQUAL


async def test_a_question_in_the_row_beats_that_of_the_request(
    engine: ScriptedEngine, judge: ScriptedEngine
) -> None:
    judge.script = [says(EQUAL)]
    async with judged(engine, judge) as client:
        await client.post("/run", ROW | {"question": "Two and two?"})
    assert "Question:\nTwo and two?\n" in judge.messages[1]["content"]


@pytest.mark.parametrize(
    ("script", "reward", "asked"),
    [([EQUAL, EQUAL], 1.0, 2), ([EQUAL, NOT_EQUAL], 0.25, 2), ([NOT_EQUAL, EQUAL], 0.0, 1)],
)
async def test_with_check_twice_swap_equal_counts_both_ways_round(
    engine: ScriptedEngine, judge: ScriptedEngine, script: list[str], reward: float, asked: int
) -> None:
    engine.script = [says("FOUR")]
    judge.script = [says(each) for each in script]
    done = await rolled_out(engine, judge, check_twice_swap=True, reward_if_swap_fails=0.25)
    assert (done["reward"], len(judge.asked)) == (reward, asked)
    assert [each["swapped"] for each in done["judge_evaluations"]] == [False, True][:asked]
    if asked == 2:
        assert "Answer A:\nFOUR\n\nAnswer B:\nfour\n" in judge.messages[1]["content"]


async def test_a_model_that_says_nothing_is_wrong_without_a_judge(
    engine: ScriptedEngine, judge: ScriptedEngine
) -> None:
    engine.script = [says(" ")]
    done = await rolled_out(engine, judge)
    assert (done["reward"], done["judge_evaluations"], judge.asked) == (0.0, [], [])


async def test_the_answer_can_be_cut_out_of_what_the_model_said(
    engine: ScriptedEngine, judge: ScriptedEngine
) -> None:
    engine.script = [says("<a>3</a> no, <a>4</a>.")]
    judge.script = [says(EQUAL)]
    await rolled_out(
        engine, judge, response_extract_regex="<a>(.*?)</a>", question_extract_regex=r"What.*\?"
    )
    assert "Answer B:\n4\n" in judge.messages[1]["content"]


async def test_labels_and_template_are_the_configs(engine: ScriptedEngine, judge: ScriptedEngine) -> None:
    judge.script = [says("I find them equal: not")]
    done = await rolled_out(
        engine,
        judge,
        judge_prompt_template="{{x}} {expected_answer}|{generated_answer}",
        judge_equal_label="equal",
        judge_not_equal_label="equal: not",
        judge_system_message="",
    )
    assert judge.messages == [{"role": "user", "content": "{x} four|Hello"}]
    assert (done["reward"], done["judge_evaluations"][0]["verdict_label"]) == (0.0, "equal: not")


# ---- a judge that fails


@pytest.mark.parametrize(
    ("turn", "status", "code"),
    [
        (says("I cannot say."), 502, "judge_gave_no_verdict"),
        (says("[[A="), 502, "judge_gave_no_verdict"),
        (says("It could be [[A=B]], or", finish_reason="length"), 502, "judge_gave_no_verdict"),
        ((503, {"error": {"message": "busy"}}), 503, "service_unavailable"),
        ((429, {"error": {"message": "slow down"}}), 429, "rate_limit_exceeded"),
        ((500, {"error": {"message": "oops"}}), 500, "server_error"),
        ((400, {"error": {"message": "too long"}}), 500, "judge_refused"),
        ((404, {"error": {"message": "no such model"}}), 500, "judge_refused"),
    ],
)
async def test_a_judge_that_fails_is_an_error_of_the_rollout_and_no_fault_of_the_row(
    engine: ScriptedEngine, judge: ScriptedEngine, turn: Any, status: int, code: str
) -> None:
    judge.script = [turn]
    async with judged(engine, judge) as client:
        answer = await client.post("/run", ROW)
    assert (answer.status, answer.error["code"]) == (status, code)


async def test_parameters_that_no_model_takes_are_no_fault_of_the_row(
    engine: ScriptedEngine, judge: ScriptedEngine
) -> None:
    async with judged(engine, judge, judge_responses_create_params={"temperature": 9}) as client:
        answer = await client.post("/run", ROW)
    assert (answer.status, answer.error["code"]) == (500, "judge_refused")
    assert "temperature" in answer.error["message"]


async def test_a_judge_that_is_down_is_a_503(engine: ScriptedEngine, judge: ScriptedEngine) -> None:
    judge.base_url = f"http://127.0.0.1:{closed_port()}/v1"
    async with judged(engine, judge) as client:
        answer = await client.post("/run", ROW)
    assert (answer.status, answer.error["code"]) == (503, "engine_unavailable")


# ---- its config


@pytest.mark.parametrize(
    ("given", "key", "told"),
    [
        (
            {"judge_prompt_template": "{expected_answer}"},
            "judge_prompt_template",
            "lacks the field {generated_answer}",
        ),
        (
            {"judge_prompt_template": "{expected_answer}{generated_answer}{answer}"},
            "judge_prompt_template",
            "has the field {answer}",
        ),
        ({"judge_prompt_template": "{"}, "judge_prompt_template", "is no template"),
        (
            {"judge_prompt_template_fpath": "nowhere.txt"},
            "judge_prompt_template_fpath",
            "names nowhere.txt",
        ),
        (
            {"judge_prompt_template_fpath": "a", "judge_prompt_template": "b"},
            "judge_prompt_template_fpath",
            "is given beside judge_prompt_template",
        ),
        ({"response_extract_regex": "("}, "response_extract_regex", "is no regular expression"),
        ({"judge_not_equal_label": "[[A=B]]"}, "judge_not_equal_label", "must be another text"),
    ],
)
def test_a_judge_that_could_not_work_is_found_in_the_config(
    given: dict[str, Any], key: str, told: str
) -> None:
    problems = list(JudgeSettings.further_problems(given))
    assert [problem.path for problem in problems] == [key]
    assert told in problems[0].message


def test_a_template_is_read_from_its_file_when_the_config_is_read(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("{expected_answer} = {generated_answer}?")
    given = {"judge_model_server": "judge_model", "judge_prompt_template_fpath": str(file)}
    assert list(JudgeSettings.further_problems(given)) == []
    settings = JudgeSettings(**given)
    file.unlink()
    assert settings.judge_prompt_template == "{expected_answer} = {generated_answer}?"


def test_the_templates_of_the_package_work() -> None:
    shipped = JudgeSettings(judge_model_server="judge_model")  # type: ignore[arg-type]
    given = {"judge_prompt_template": shipped.judge_prompt_template}
    assert list(JudgeSettings.further_problems(given)) == []
