"""The README's tables against the code that they speak of."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from local_vllm.cli.run import run
from local_vllm.config.compose import load_run_config
from local_vllm.config.schema import REGISTRY, ChatSettings, DescribedNodes
from local_vllm.engine.hub_variables import HUB_VARIABLES
from local_vllm.protocol.messages import ITEM_TYPES
from local_vllm.protocol.request import OpenAIFields
from local_vllm.protocol.vllm_fields import PASSED_THROUGH
from local_vllm.runs.status import (
    NodeStatus,
    PlacementStatus,
    RunState,
    RunStatus,
    ServerStatus,
    SlotStatus,
    StatusReport,
)

STATUS_PARTS = (StatusReport, RunStatus, ServerStatus, PlacementStatus, SlotStatus, NodeStatus)

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("field", PASSED_THROUGH)
def test_a_field_that_passes_through_stands_in_the_table(field: str) -> None:
    assert f"| `{field}` |" in README


@pytest.mark.parametrize("field", OpenAIFields.__struct_fields__)
def test_a_field_of_the_responses_api_stands_in_the_table(field: str) -> None:
    section = README.partition("### Fields of a request")[2].partition("\n### ")[0]
    assert re.search(rf"^\| [^|]*`{field}`", section, re.MULTILINE)


def test_the_readme_tells_of_every_field_that_the_openai_package_knows() -> None:
    known = {*ResponseCreateParamsBase.__annotations__, "stream"}
    assert known <= set(OpenAIFields.__struct_fields__)


@pytest.mark.parametrize("item", [*ITEM_TYPES, "item_reference"])
def test_an_item_of_the_input_stands_in_the_table(item: str) -> None:
    section = README.partition("Items of `input`:")[2].partition("\n### ")[0]
    assert re.search(rf"^\| [^|]*`{item}`", section, re.MULTILINE)


@pytest.mark.parametrize("key", ChatSettings.model_fields)
def test_a_setting_of_a_server_is_told(key: str) -> None:
    assert re.search(rf"`{key}\b", README) or re.search(rf"^ +{key}:", README, re.MULTILINE)


@pytest.mark.parametrize("implementation", [name for known in REGISTRY.values() for name in known])
def test_an_implementation_stands_in_the_table(implementation: str) -> None:
    assert f"| `{implementation}` |" in README


@pytest.mark.parametrize("key", DescribedNodes.model_fields)
def test_a_key_of_a_described_node_stands_in_the_table(key: str) -> None:
    assert re.search(rf"^\| .*`{key}`", README, re.MULTILINE)


@pytest.mark.parametrize("state", RunState)
def test_a_state_of_a_run_stands_in_the_table(state: RunState) -> None:
    assert f"| `{state}` |" in README


@pytest.mark.parametrize("field", sorted({field.name for part in STATUS_PARTS for field in fields(part)}))
def test_a_field_of_ng_status_is_told(field: str) -> None:
    section = README.partition("### See what runs")[2].partition("\n## ")[0]
    assert f"`{field}`" in section


def test_the_dry_run_prints_what_the_readme_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = README.partition("### Try a plan before the machines exist")[2]
    command, shown = (re.search(rf"```{kind}\n(.*?)```", section, re.DOTALL)[1] for kind in ("bash", "text"))
    (tmp_path / "env.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("RAY_ADDRESS", "HF_HOME", "HF_TOKEN", "XDG_STATE_HOME", "FORCE_COLOR", *HUB_VARIABLES):
        monkeypatch.delenv(name, raising=False)

    assert run(shlex.split(command.replace("\\\n", ""))[1:]) == 0
    assert capsys.readouterr().out == shown


def test_the_file_of_nodes_in_the_readme_describes_a_cluster(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n# nodes.yaml.*?```", README, re.DOTALL)[0]
    (tmp_path / "nodes.yaml").write_text(block.strip("`").removeprefix("yaml"))
    (tmp_path / "env.yaml").touch()
    nodes = load_run_config(["+dry_run=true", "+cluster=nodes.yaml"], cwd=tmp_path).settings.cluster

    assert [(group.count, group.gpus) for group in nodes] == [(1, 0), (4, 8), (1, 8)]
