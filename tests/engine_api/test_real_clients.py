"""Clients that were made for OpenAI's API, against a real engine: what each got, not only that it did not fail.

All of them know only the base URL. Codex CLI and the AI SDK come from npm, which needs Node.js and the network.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from agents import Agent, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from ng_run_process import NgRun
from openai import AsyncOpenAI
from pydantic import BaseModel

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

MODEL = "policy_model"
CITIES = ("Paris", "Oslo")
# The default model is told to call the tool for both cities, and then says what the tool answered.
ASKED = "CALL:" + json.dumps([{"name": "get_weather", "arguments": {"city": city}} for city in CITIES])
TOLD = "The tools answered: 18 degrees in Paris; 18 degrees in Oslo"
CODEX = "@openai/codex@0.169.0"
AI_SDK = ("ai@6.0.326", "@ai-sdk/openai@3.0.141")


class City(BaseModel):
    """What a client wants the answer parsed into."""

    name: str
    size: int


def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees in {city}"


# ---- the openai package


def test_openai_runs_a_tool_loop_with_stored_responses(run: NgRun) -> None:
    client = run.client()
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "name": "get_weather", "parameters": parameters}]
    asked = client.responses.create(model=MODEL, input=ASKED, tools=tools)
    calls = [item for item in asked.output if item.type == "function_call"]
    assert [json.loads(call.arguments)["city"] for call in calls] == [*CITIES]
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": weather(**json.loads(call.arguments))}
        for call in calls
    ]
    told = client.responses.create(model=MODEL, input=results, tools=tools, previous_response_id=asked.id)
    assert told.output_text == TOLD
    assert client.responses.retrieve(told.id).output_text == TOLD
    assert len(client.responses.input_items.list(told.id).data) == 5


def test_openai_parses_what_the_engine_was_held_to(run: NgRun) -> None:
    parsed = run.client().responses.parse(model=MODEL, input='ECHO:{"name":"Oslo","size":7}', text_format=City)
    assert parsed.output_parsed == City(name="Oslo", size=7)


def test_openai_streams_calls(run: NgRun) -> None:
    tools = [{"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}]
    with run.client().responses.stream(model=MODEL, input=ASKED, tools=tools) as stream:
        done = [event.arguments for event in stream if event.type == "response.function_call_arguments.done"]
        assert [json.loads(arguments) for arguments in done] == [{"city": city} for city in CITIES]
        assert [item.type for item in stream.get_final_response().output] == ["function_call"] * 2


# ---- openai-agents


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_openai_agents_run_a_tool_loop(run: NgRun, streamed: bool) -> None:
    asked: list[str] = []

    @function_tool
    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return weather(city)

    async def loop() -> tuple[str, int, list[str]]:
        set_tracing_disabled(True)
        client = AsyncOpenAI(base_url=f"{run.url}/v1", api_key="none", max_retries=0)
        model = OpenAIResponsesModel(model=MODEL, openai_client=client)
        agent = Agent(name="weather", instructions="Be brief.", tools=[get_weather], model=model)
        if not streamed:
            result = await Runner.run(agent, ASKED)
            return result.final_output, result.context_wrapper.usage.requests, []
        result = Runner.run_streamed(agent, ASKED)
        deltas = [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
        ]
        return result.final_output, result.context_wrapper.usage.requests, deltas

    output, requests, deltas = asyncio.run(loop())
    assert (output, requests, asked) == (TOLD, 2, [*CITIES])
    assert not streamed or (len(deltas) > 3 and "".join(deltas) == TOLD)


# ---- LangChain


@pytest.mark.parametrize("version", ["responses/v1", "v0"])
def test_langchain_runs_a_tool_loop(run: NgRun, version: str) -> None:
    get_weather = tool("get_weather")(weather)
    model = langchain(run, output_version=version).bind_tools([get_weather])
    messages: list = [HumanMessage(ASKED)]
    messages.append(model.invoke(messages))
    assert [call["args"] for call in messages[-1].tool_calls] == [{"city": city} for city in CITIES]
    messages += [get_weather.invoke(call) for call in messages[-1].tool_calls]
    told = model.invoke(messages)
    assert told.text == TOLD
    assert told.usage_metadata["output_tokens"] > 0


def test_langchain_streams(run: NgRun) -> None:
    pieces = list(langchain(run).stream("ECHO:one two three"))
    assert "".join(piece.text for piece in pieces) == "one two three"
    assert len(pieces) > 3


def test_langchain_parses_what_the_engine_was_held_to(run: NgRun) -> None:
    asked = langchain(run).with_structured_output(City)
    assert asked.invoke('ECHO:{"name":"Oslo","size":7}') == City(name="Oslo", size=7)


def langchain(run: NgRun, **more: str) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL, base_url=f"{run.url}/v1", api_key="none", use_responses_api=True, max_retries=0, **more
    )


# ---- Codex CLI


@pytest.fixture(scope="session")
def codex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return from_npm(tmp_path_factory.mktemp("codex"), CODEX) / ".bin/codex"


def from_npm(folder: Path, *packages: str) -> Path:
    """The folder of modules with these packages in it."""
    npm = shutil.which("npm")
    assert npm, "npm was not found: install Node.js 20 or newer"
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return folder / "node_modules"


def test_codex_runs_a_command_that_the_model_asked_for(run: NgRun, codex: Path, tmp_path: Path) -> None:
    (tmp_path / "instructions.md").write_text("You are an agent.")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/config.toml").write_text(
        f'model = "{MODEL}"\nmodel_provider = "local_vllm"\nweb_search = "disabled"\n'
        f"model_instructions_file = {json.dumps(str(tmp_path / 'instructions.md'))}\n"
        "[features]\nmulti_agent = false\ngoals = false\nplugins = false\napps = false\n"
        "[model_providers.local_vllm]\n"
        f'name = "local_vllm"\nbase_url = "{run.url}/v1"\nwire_api = "responses"\n'
    )
    work = tmp_path / "work"
    work.mkdir()
    call = {"name": "exec_command", "arguments": {"cmd": "echo made by the agent > made.txt"}}
    done = subprocess.run(
        [codex, "exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox",
         f"STEPS:CALL:{json.dumps(call)}||ECHO:all done"],
        cwd=work, env={**os.environ, "CODEX_HOME": str(tmp_path / "home")}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    ran = [item for item in items if item["type"] == "command_execution"]
    assert [item["exit_code"] for item in ran] == [0]
    assert (work / "made.txt").read_text() == "made by the agent\n"
    assert [item["text"] for item in items if item["type"] == "agent_message"] == ["all done"]
    (turn,) = [event for event in events if event["type"] == "turn.completed"]
    assert turn["usage"]["output_tokens"] > 0


# ---- the Vercel AI SDK


def test_the_ai_sdk_runs_a_tool_loop_whole_and_streamed(run: NgRun, tmp_path: Path) -> None:
    from_npm(tmp_path, *AI_SDK)
    program = tmp_path / "loop.mjs"
    shutil.copy(Path(__file__).with_name("ai_sdk_loop.mjs"), program)
    command = ["node", program, f"{run.url}/v1", ASKED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert (got["whole"], got["steps"]) == (TOLD, 2)
    assert ("".join(got["pieces"]), got["streamedSteps"]) == (TOLD, 2)
    assert len(got["pieces"]) > 3
    assert got["parsed"] == {"name": "Oslo", "size": 7}
    assert got["usage"]["outputTokens"] > 0
