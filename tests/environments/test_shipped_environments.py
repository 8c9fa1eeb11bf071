"""The environments in the package: their rows, their configs, and what they reward."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rollout_world import ScriptedEngine, agent, calls, neighbours, says, served

import local_vllm.environments
from local_vllm.config.compose import load_run_config
from local_vllm.environments import ResourcesServer
from local_vllm.environments.simple_weather.app import weather_in
from local_vllm.environments.tools import tools_of

FOLDER = Path(local_vllm.environments.__file__).parent
SHIPPED = ("equivalence_llm_judge", "example_multi_step", "multineedle", "simple_task", "simple_weather")


def environment(name: str) -> type[ResourcesServer]:
    module = importlib.import_module(f"local_vllm.environments.{name}.app")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, ResourcesServer)
        and value.__module__ == module.__name__
    ]
    assert len(found) == 1
    return found[0]


def rows(name: str) -> list[dict[str, Any]]:
    lines = (FOLDER / name / "data" / "example.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_environment_of_the_package_is_tested_here() -> None:
    found = {file.parents[1].name for file in FOLDER.glob("*/data/example.jsonl")}
    assert found == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_an_environment_has_five_rows_that_it_can_use_and_that_name_its_agent(name: str) -> None:
    found = rows(name)
    assert len(found) == 5
    for row in found:
        environment(name).Row.model_validate(row)
        assert row["agent_ref"] == {"type": "responses_api_agents", "name": f"{name}_simple_agent"}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_tools_of_a_row_are_those_of_the_environment(name: str) -> None:
    offered = [tool.definition for tool in tools_of(environment(name)).values()]
    for row in rows(name):
        assert row["responses_create_params"].get("tools", []) == offered


@pytest.mark.parametrize("name", SHIPPED)
def test_a_config_defines_the_environment_and_its_agent(name: str, tmp_path: Path) -> None:
    file = "simple" if name == "simple_task" else name
    (tmp_path / "env.yaml").write_text(
        "judge_base_url: http://127.0.0.1:9/v1\njudge_api_key: EMPTY\njudge_model_name: m\n"
    )
    paths = f"resources_servers/{name}/configs/{file}.yaml,quickstart.yaml,vllm_judge_model.yaml"
    config = load_run_config([f"+config_paths=[{paths}]"], cwd=tmp_path)
    servers = {server.name: server for server in config.servers}
    assert isinstance(servers[name].settings, environment(name).Settings)
    agent_settings: Any = servers[f"{name}_simple_agent"].settings
    assert (agent_settings.resources_server.name, agent_settings.model_server.name) == (
        name,
        "policy_model",
    )


async def rolled_out(
    engine: ScriptedEngine, name: str, row: dict[str, Any], **settings: Any
) -> dict[str, Any]:
    known = neighbours(engine, environment(name), settings)
    async with served(agent(known)) as client:
        answer = await client.post("/run", row)
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    assert {key: found[key] for key in row} == row
    return found


# ---- simple_weather

TWO_CITIES = rows("simple_weather")[4]


def weather(*cities: str) -> dict[str, Any]:
    return calls(*[("get_weather", {"city": city}) for city in cities])


OSLO, LISBON = (str(weather_in(city)[0]) for city in ("Oslo", "Lisbon"))


@pytest.mark.parametrize(
    ("script", "reward"),
    [
        ([weather("Oslo", "Lisbon"), says(f"{OSLO} in Oslo, {LISBON} in Lisbon")], 1.0),
        ([weather("oslo "), weather("LISBON"), says(f"{OSLO} and {LISBON}")], 1.0),
        ([weather("Oslo"), says(f"{OSLO} and {LISBON}")], 0.5),
        ([weather("Oslo", "Lisbon"), says(f"{OSLO} in Oslo")], 0.5),
        ([says(f"{OSLO} in Oslo, {LISBON} in Lisbon")], 0.0),
        ([weather("Oslo", "Lisbon"), says("It is nice in both.")], 0.0),
        ([weather("Oslo", "Lisbon")], 0.0),
    ],
)
async def test_weather_is_rewarded_where_it_was_asked_for_and_told(
    engine: ScriptedEngine, script: list[Any], reward: float
) -> None:
    engine.script = script
    assert (await rolled_out(engine, "simple_weather", TWO_CITIES))["reward"] == reward


async def test_the_weather_of_a_city_is_always_the_same_in_either_unit(engine: ScriptedEngine) -> None:
    asked = [
        ("get_weather", {"city": "Kyoto", "unit": unit}) for unit in ("celsius", "fahrenheit", "celsius")
    ]
    engine.script = [calls(*asked), says("done")]
    await rolled_out(engine, "simple_weather", TWO_CITIES)
    first, second, third = map(json.loads, engine.tool_texts())
    assert first == third == {"city": "Kyoto", "temperature": 2, "unit": "celsius", "sky": "rainy"}
    assert second["temperature"] == 36


# ---- example_multi_step

ORDER = {
    "responses_create_params": {"input": "What is the total of order A-1? Submit it."},
    "orders": {
        "A-1": {
            "customer": "Ada",
            "lines": [{"article": "mug", "quantity": 3}, {"article": "lamp", "quantity": 1}],
        }
    },
    "prices_cents": {"mug": 333, "lamp": 1000},
    "discounts_percent": {"Ada": 15},
    "order_id": "A-1",
}
LOOKED_UP = [
    calls(("get_order", {"order_id": "A-1"})),
    calls(
        ("get_price", {"article": "mug"}),
        ("get_price", {"article": "lamp"}),
        ("get_discount", {"customer": "Ada"}),
    ),
]


def submit(total: int) -> dict[str, Any]:
    return calls(("submit_total", {"total_cents": total}))


@pytest.mark.parametrize(
    ("script", "reward", "missing"),
    [
        ([*LOOKED_UP, submit(1699), says("done")], 1.0, []),
        ([*LOOKED_UP, submit(1), submit(1699), says("done")], 1.0, []),
        ([*LOOKED_UP, submit(1699), submit(1), says("done")], 0.0, []),
        ([*LOOKED_UP, submit(1999), says("done")], 0.0, []),
        ([*LOOKED_UP, says("1699")], 0.0, []),
        (
            [LOOKED_UP[0], submit(1699), says("done")],
            0.0,
            ["get_discount(Ada)", "get_price(lamp)", "get_price(mug)"],
        ),
    ],
)
async def test_an_order_is_rewarded_when_all_was_looked_up_and_the_total_is_right(
    engine: ScriptedEngine, script: list[Any], reward: float, missing: list[str]
) -> None:
    engine.script = script
    done = await rolled_out(engine, "example_multi_step", ORDER)
    assert (done["reward"], done["missing_calls"], done["expected_total_cents"]) == (reward, missing, 1699)


async def test_what_the_shop_does_not_have_is_told(engine: ScriptedEngine) -> None:
    engine.script = [calls(("get_order", {"order_id": "Z-9"})), says("done")]
    await rolled_out(engine, "example_multi_step", ORDER)
    assert engine.tool_texts() == ["Error: There is no order 'Z-9'."]


@pytest.mark.parametrize("row", rows("example_multi_step"), ids=lambda row: row["order_id"])
async def test_the_order_of_every_row_can_be_worked_out_with_the_tools(
    engine: ScriptedEngine, row: dict[str, Any]
) -> None:
    order = row["orders"][row["order_id"]]
    prices = [("get_price", {"article": line["article"]}) for line in order["lines"]]
    looked_up = [
        ("get_order", {"order_id": row["order_id"]}),
        ("get_discount", {"customer": order["customer"]}),
    ]
    total = sum(row["prices_cents"][line["article"]] * line["quantity"] for line in order["lines"])
    discounted = round(total * (100 - row["discounts_percent"][order["customer"]]) / 100 + 1e-6)
    engine.script = [calls(*looked_up, *prices), submit(discounted), says("done")]
    assert (await rolled_out(engine, "example_multi_step", row))["reward"] == 1.0


# ---- multineedle


NEEDLES = {
    "responses_create_params": {"input": "Find them."},
    "needles": {"the gate": "12-K", "the hall": "34-L"},
}


def found(*needles: tuple[str, str]) -> dict[str, Any]:
    return calls(*[("submit_needle", {"label": label, "value": value}) for label, value in needles])


@pytest.mark.parametrize(
    ("script", "share", "all_found"),
    [
        ([found(("the gate", "12-K"), ("the hall", "34-L")), says("done")], 1.0, 1.0),
        ([found(("Gate ", "12-k.")), found(("the hall", "34-L")), says("done")], 1.0, 1.0),
        (
            [found(("the gate", "0"), ("the hall", "34-L")), found(("the gate", "12-K")), says("done")],
            1.0,
            1.0,
        ),
        ([found(("the gate", "12-K")), says("done")], 0.5, 0.0),
        ([found(("the gate", "12-K"), ("the hall", "12-K")), says("done")], 0.5, 0.0),
        ([found(("the gate", "12-K"), ("the hall", "34-L"), ("the shed", "1")), says("done")], 0.5, 0.0),
        ([found(("a", "1"), ("b", "2"), ("c", "3")), says("done")], 0.0, 0.0),
        ([says("12-K and 34-L")], 0.0, 0.0),
    ],
)
async def test_needles_are_rewarded_by_share_or_all_at_once(
    engine: ScriptedEngine, script: list[Any], share: float, all_found: float
) -> None:
    for scoring, reward in (("share", share), ("all", all_found)):
        engine.asked.clear()
        engine.script = script
        assert (await rolled_out(engine, "multineedle", NEEDLES, scoring=scoring))["reward"] == reward


async def test_what_was_handed_in_can_be_listed(engine: ScriptedEngine) -> None:
    engine.script = [found(("the gate", "12-K")), calls(("list_submitted", {})), says("done")]
    await rolled_out(engine, "multineedle", NEEDLES)
    assert engine.tool_texts() == ["1 handed in so far", '{"gate":"12-k"}']


@pytest.mark.parametrize("row", rows("multineedle"), ids=lambda row: "-".join(row["needles"].values()))
def test_the_needles_of_every_row_stand_in_its_text(row: dict[str, Any]) -> None:
    text = row["responses_create_params"]["input"][0]["content"].casefold()
    assert all(label in text and value.casefold() in text for label, value in row["needles"].items())


# ---- simple_task


@pytest.mark.parametrize(
    ("said", "reward"),
    [("hammer", 1.0), ("It is the **Hammer**.", 1.0), ("hammers", 0.0), ("", 0.0), ("a sledgehammer", 0.0)],
)
async def test_a_task_is_rewarded_for_the_expected_words(
    engine: ScriptedEngine, said: str, reward: float
) -> None:
    engine.script = [says(said)]
    assert (await rolled_out(engine, "simple_task", rows("simple_task")[0]))["reward"] == reward


# ---- rows that an environment cannot use


@pytest.mark.parametrize(
    ("name", "spoil", "param"),
    [
        ("simple_weather", lambda row: row.pop("expected_cities"), "expected_cities"),
        ("example_multi_step", lambda row: row["prices_cents"].update(mug="dear"), "prices_cents.mug"),
        ("multineedle", lambda row: row.update(needles={}), "needles"),
        ("simple_task", lambda row: row.update(expected_answer=4), "expected_answer"),
    ],
)
async def test_a_row_of_another_environment_is_a_400_that_names_the_field(
    engine: ScriptedEngine, name: str, spoil: Callable[[Any], Any], param: str
) -> None:
    row = json.loads(json.dumps(rows(name)[0]))
    spoil(row)
    async with served(agent(neighbours(engine, environment(name)))) as client:
        answer = await client.post("/run", row)
    assert (answer.status, answer.error["param"], engine.asked) == (400, param, [])
