"""Agents and resources servers in a configuration: where their files are looked for, and what is said of them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from local_vllm.config.apps import AppFolders, load_app, shipped_apps

APP = """
from local_vllm.config.environment_settings import ResourcesServerSettings

class Dice:
    kind = "resources_servers"

    class Settings(ResourcesServerSettings):
        sides: int = 6
"""
AGENT = """
from local_vllm.config.environment_settings import AgentSettings

class Player:
    kind = "responses_api_agents"
    Settings = AgentSettings
"""
DICE = "dice: {resources_servers: {dice: {entrypoint: app.py, sides: 20}}}\n"
PLAYER = """
player:
  responses_api_agents:
    player: {resources_server: dice, model_server: {type: responses_api_models, name: policy_model}}
"""


@pytest.fixture
def dice(write) -> None:
    write("resources_servers/dice/app.py", APP)
    write("resources_servers/dice/configs/dice.yaml", DICE)


@pytest.fixture
def player(dice, write) -> str:
    write("responses_api_agents/player/app.py", AGENT)
    write("player.yaml", DICE + PLAYER)
    return "+config_paths=[player.yaml,quickstart.yaml]"


@pytest.mark.usefixtures("dice")
def test_a_users_own_environment_is_found_in_the_working_folder(load, tmp_path):
    (server,) = load("+config_paths=[resources_servers/dice/configs/dice.yaml]").servers

    assert (server.name, server.kind, server.implementation) == ("dice", "resources_servers", "dice")
    assert server.settings.sides == 20
    assert Path(server.app) == tmp_path / "resources_servers/dice/app.py"


def test_an_environment_is_found_around_the_config_that_names_it(load, write, tmp_path):
    write("elsewhere/dice/app.py", APP)
    write("elsewhere/dice/configs/dice.yaml", DICE)

    (server,) = load("+config_paths=[elsewhere/dice/configs/dice.yaml]").servers
    assert Path(server.app) == tmp_path / "elsewhere/dice/app.py"


@pytest.mark.usefixtures("dice")
def test_the_keys_of_an_environment_can_be_overridden_by_the_short_path(load):
    chosen = "+config_paths=[resources_servers/dice/configs/dice.yaml]"

    assert load(chosen, "++dice.dice.sides=4").servers[0].settings.sides == 4


@pytest.mark.usefixtures("dice")
def test_a_misspelled_key_of_an_environment_is_told_with_the_nearest_one(problems):
    told = problems("+config_paths=[resources_servers/dice/configs/dice.yaml]", "++dice.dice.side=4")

    assert told == ["dice.resources_servers.dice.side: unknown key; did you mean `sides`?"]


def test_an_agent_gets_the_names_of_its_servers_with_the_alias_replaced(load, player):
    agent = next(server for server in load(player).servers if server.name == "player")

    assert agent.settings.resources_server.name == "dice"
    assert agent.settings.model_server.name == "policy_model"
    renamed = load("+config_paths=[player.yaml,Qwen/Qwen3-4B.yaml]").servers
    assert next(s for s in renamed if s.name == "player").settings.model_server.name == "Qwen3-4B"


def test_an_agent_without_a_model_is_told_to_add_one(problems, player):
    told = problems("+config_paths=[player.yaml]")

    assert told == [
        "player.responses_api_agents.player.model_server.name: there is no model server: "
        "add a model's config to config_paths"
    ]


def test_an_agent_whose_environment_is_missing_is_told_the_nearest_name(problems, player):
    told = problems(player, "++player.player.resources_server=dise")

    assert told == [
        "player.responses_api_agents.player.resources_server.name: there is no server `dise`; did you mean `dice`?"
    ]


def test_an_unknown_environment_is_told_with_where_it_was_looked_for(problems, write, tmp_path):
    write("x.yaml", "x: {resources_servers: {simple_weathr: {}}}")

    (told,) = problems("+config_paths=[x.yaml]")
    assert told.startswith("x.resources_servers.simple_weathr: unknown implementation: there is no ")
    assert f"resources_servers/simple_weathr/app.py in {tmp_path}" in told


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("class Dice(:\n", "cannot be loaded: SyntaxError: "),
        ("import nothing_of_this_name\n", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("x = 1\n", "has to define one class for a server of resources_servers, and defines none"),
        (APP + AGENT, "has to define one class for a server of resources_servers, and defines Dice, Player"),
        (AGENT, "defines a server of responses_api_agents, not of resources_servers"),
    ],
    ids=["no python", "missing import", "no class", "two classes", "another kind"],
)
def test_an_app_that_cannot_be_used_is_told_in_one_line(problems, write, source, told):
    write("resources_servers/dice/app.py", source)
    write("d.yaml", DICE)

    (line,) = problems("+config_paths=[d.yaml]")
    assert line.startswith("dice.resources_servers.dice: ") and told in line and "\n" not in line


def test_other_classes_of_an_app_may_have_a_kind_of_their_own(load, write):
    others = """
from dataclasses import dataclass
from enum import Enum

@dataclass
class Face:
    kind: str = "number"

class Colour(Enum):
    kind = "colour"
"""
    write("resources_servers/dice/app.py", APP + others)
    write("d.yaml", DICE)

    assert load("+config_paths=[d.yaml]").servers[0].settings.sides == 20


def test_a_tool_that_cannot_be_one_is_told_before_anything_is_started(problems, write):
    write(
        "resources_servers/dice/app.py",
        """
        from local_vllm.environments import ResourcesServer, tool

        class Dice(ResourcesServer):
            @tool
            def roll(self, sides: int) -> int:
                return sides
        """,
    )
    write("d.yaml", "dice: {resources_servers: {dice: {}}}")

    (line,) = problems("+config_paths=[d.yaml]")
    assert "app.py cannot be loaded: TypeError: " in line and "roll" in line


def test_the_settings_of_a_users_own_environment_travel_to_another_process(load, player, tmp_path):
    config = load(player)
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    program = (
        "import pickle\n"
        "config = pickle.load(open('config.pickle', 'rb'))\n"
        "print(*[getattr(server.settings, 'sides', None) for server in config.servers])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.split() == ["20", "None", "None"]


def test_every_shipped_app_can_be_loaded_by_its_name():
    for name in shipped_apps():
        kind = "responses_api_agents" if name.endswith("_agent") else "resources_servers"
        app = AppFolders(Path("/nonexistent")).find(kind, name)
        assert app == f"local_vllm.environments.{name}.app"
        assert load_app(app, kind).kind == kind
