"""The environment that the README shows is run as it stands; and the README tells of all there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rollout_world import ScriptedEngine, agent, calls, neighbours, says, served

import local_vllm.environments
from local_vllm.config.apps import load_app
from local_vllm.config.compose import load_run_config
from local_vllm.config.schema import RESOURCES
from local_vllm.environments.agent import Agent
from local_vllm.environments.equivalence_llm_judge.app import JudgeSettings
from local_vllm.environments.resources_server import ResourcesServer

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = README.partition("\n## Agents and environments\n")[2].partition("\n## ")[0]
OWN = SECTION.partition("### Your own environment in 40 lines\n")[2]


def files_shown() -> dict[str, str]:
    """Path -> content, of each file that the README shows whole."""
    return dict(re.findall(r"^`([\w/.]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", OWN, re.MULTILINE | re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, content in files_shown().items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return tmp_path


def guess_class(folder: Path) -> type[ResourcesServer]:
    return load_app(str(folder / "resources_servers/guess/app.py"), RESOURCES)


def test_the_environment_takes_40_lines_at_most() -> None:
    assert len(files_shown()["resources_servers/guess/app.py"].splitlines()) <= 40


def test_its_command_finds_the_environment_and_its_agent(folder: Path) -> None:
    command = re.search(r'ng_run "(\+config_paths=[^"]+guess[^"]+)"', OWN)
    assert command is not None
    config = load_run_config([command[1]], cwd=folder)
    assert [server.name for server in config.servers][:2] == ["guess", "guess_simple_agent"]


@pytest.mark.parametrize(
    ("guesses", "reward", "told"),
    [
        ([50], 1.0, ["That is it."]),
        ([25, 75, 50], 1 / 3, ["Too low.", "Too high.", "That is it."]),
        ([1], 0.0, ["Too low."]),
    ],
)
async def test_its_rows_are_rolled_out_as_one_would_expect(
    engine: ScriptedEngine, folder: Path, guesses: list[int], reward: float, told: list[str]
) -> None:
    row = files_shown()["resources_servers/guess/data/example.jsonl"].strip().encode()
    engine.script = [*[calls(("guess", {"number": number})) for number in guesses], says("done")]
    async with served(agent(neighbours(engine, guess_class(folder)))) as client:
        done = (await client.post("/run", row)).json
    assert (done["reward"], done["guesses"]) == (reward, len(guesses))
    assert engine.tool_texts() == told


async def test_the_model_is_told_what_the_docstring_says(engine: ScriptedEngine, folder: Path) -> None:
    row = files_shown()["resources_servers/guess/data/example.jsonl"].strip().encode()
    async with served(agent(neighbours(engine, guess_class(folder)))) as client:
        await client.post("/run", row)
    function = engine.asked[0]["body"]["tools"][0]["function"]
    assert function["description"] == "Guess the secret number."
    assert function["parameters"]["properties"] == {
        "number": {"type": "integer", "description": "Your guess, from 1 to 100."}
    }


def words_of(text: str) -> set[str]:
    """Every name that stands in `code` of the README."""
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"\w+", code)}


WORDS = words_of(re.sub(r"^```.*?^```$", "", SECTION, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("name", sorted({*local_vllm.environments.__all__} - {"ResourcesServer"}))
def test_what_can_be_imported_is_told(name: str) -> None:
    assert name in WORDS


def own_names(kind: type) -> list[str]:
    return sorted(name for name in vars(kind) if not name.startswith("_"))


@pytest.mark.parametrize("name", sorted({*own_names(ResourcesServer)} - {"kind"}))
def test_what_an_environment_can_define_is_told(name: str) -> None:
    assert name in WORDS or f" {name} = " in OWN or f"def {name}(" in OWN


@pytest.mark.parametrize("name", sorted({*own_names(Agent)} - {"kind"}))
def test_what_an_agent_can_define_is_told(name: str) -> None:
    assert name in WORDS


@pytest.mark.parametrize("key", sorted(JudgeSettings.__annotations__))
def test_a_setting_of_the_judge_is_told(key: str) -> None:
    assert key in WORDS


@pytest.mark.parametrize(
    "name",
    sorted(
        file.parents[1].name
        for file in Path(local_vllm.environments.__file__).parent.glob("*/data/*.jsonl")
    ),
)
def test_an_environment_stands_in_the_table(name: str) -> None:
    assert re.search(rf"^\| `{name}`", SECTION, re.MULTILINE)


def test_the_default_of_max_steps_is_the_agents() -> None:
    from local_vllm.environments.simple_agent.app import MAX_STEPS

    assert f"after `max_steps` turns ({MAX_STEPS}," in SECTION


def test_the_deadline_of_a_tool_is_told() -> None:
    from local_vllm.environments.tools import TOOL_TIMEOUT_S

    assert f"`@tool(timeout_s=30)` ({TOOL_TIMEOUT_S:g} without)" in SECTION
