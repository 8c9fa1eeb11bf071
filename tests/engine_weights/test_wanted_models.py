"""Which repositories an engine needs, and how its nodes are told apart by their disks: nothing is started."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from local_vllm.engine import weights_on_nodes
from local_vllm.engine.hub import HubAccess
from local_vllm.engine.hub_variables import for_an_engine, hub_variables
from local_vllm.engine.snapshot import WantedModel, is_hub_id
from local_vllm.engine.spec import DEFAULT_MODEL, Download, EngineSpec
from local_vllm.engine.weights import NodeWeights
from local_vllm.engine.weights_on_nodes import (
    BUILDING,
    groups_by_sight,
    provide_weights,
    total_of,
    wanted_models,
    with_folders,
)
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import plan_placements
from local_vllm.plan.topology import PackStrategy, Topology


def spec(**flags: object) -> EngineSpec:
    topology = Topology("policy_model", 1, 1, 1, PackStrategy.STRICT)
    (placement,) = plan_placements(Cluster((Node("n1", "10.0.0.7", 8, 8, 64.0, 64.0),)), [topology])
    return EngineSpec(
        run_id="r1",
        server="policy_model",
        model="org/model",
        served_name="org/model",
        api_key="key",
        vllm_serve_kwargs=flags,
        vllm_serve_env_vars={},
        placement=placement,
        hf_home=Path("/cache"),
        hf_token=None,
        show_stats=False,
        debug=False,
        start_timeout_s=60,
        log_path=Path("/logs/policy_model.log"),
    )


def test_the_model_is_wanted_in_the_revision_and_format_of_the_flags() -> None:
    assert wanted_models(spec()) == {"model": WantedModel("org/model", "", "auto")}
    flags = {"revision": "v2", "load-format": "dummy"}
    assert wanted_models(spec(**flags)) == {"model": WantedModel("org/model", "v2", "dummy")}


def test_a_tokenizer_of_another_model_is_wanted_without_its_weights() -> None:
    wanted = wanted_models(spec(tokenizer="org/other", tokenizer_revision="v1"))
    assert wanted["tokenizer"] == WantedModel("org/other", "v1", "dummy")
    assert wanted_models(spec(tokenizer="org/model")).keys() == {"model"}


@pytest.mark.parametrize(
    "config", [{"model": "org/draft", "num_speculative_tokens": 3}, '{"model": "org/draft"}']
)
def test_a_draft_model_is_wanted(config: object) -> None:
    assert wanted_models(spec(speculative_config=config))["speculative_config"] == WantedModel(
        "org/draft", "", "auto"
    )


@pytest.mark.parametrize(
    "config", [{"method": "ngram"}, {"model": "ngram"}, {"method": "mtp", "model": "org/model"}, "x"]
)
def test_guessing_ahead_without_another_model_wants_none(config: object) -> None:
    assert wanted_models(spec(speculative_config=config)).keys() == {"model"}


def test_the_flags_name_folders_where_they_named_models() -> None:
    flags = {
        "tokenizer": "org/other",
        "speculative-config": '{"model": "org/draft", "num_speculative_tokens": 3}',
    }
    there = with_folders(
        spec(**flags, dtype="auto"), {"model": "/m", "tokenizer": "/t", "speculative_config": "/d"}
    )
    assert there.vllm_serve_kwargs == {
        "tokenizer": "/t",
        "speculative-config": {"model": "/d", "num_speculative_tokens": 3},
        "dtype": "auto",
    }
    assert with_folders(spec(**flags), {"model": "/m"}) == spec(**flags)


@pytest.mark.parametrize(
    ("seen", "groups"),
    [
        ([{0}], [[0]]),
        ([{0, 1, 2}, {0, 1, 2}, {0, 1, 2}], [[0, 1, 2]]),
        ([{0}, {1}, {2}], [[0], [1], [2]]),
        ([{0, 2}, {1, 3}, {0, 2}, {1, 3}], [[0, 2], [1, 3]]),
        ([{0}, {0, 1}], [[0, 1]]),
        ([{0, 1}, {1}], [[0, 1]]),
    ],
)
def test_nodes_that_see_what_others_leave_share_a_disk(seen: list[set[int]], groups: list[list[int]]) -> None:
    assert groups_by_sight(seen) == groups


def test_downloads_side_by_side_add_up() -> None:
    assert total_of([]) is None
    assert total_of([Download(1, 2, 10, 20, 5.0), Download(2, 2, 20, 20, 0.0)]) == Download(3, 4, 30, 40, 5.0)


@pytest.mark.parametrize(
    ("model", "is_one"),
    [
        ("gpt2", True),
        ("org/model-1.5_x", True),
        ("/models/x", False),
        ("a/b/c", False),
        ("a b", False),
        ("./x", False),
    ],
)
def test_the_form_of_a_hub_id(model: str, is_one: bool) -> None:
    assert is_hub_id(model) is is_one


def test_the_variables_of_the_hub_go_along_and_proxies_not_into_the_engine() -> None:
    environment = {
        "HF_ENDPOINT": "http://hub",
        "HTTPS_PROXY": "http://proxy",
        "no_proxy": "x",
        "PATH": "/bin",
        "HF_TOKEN": "s",
    }
    chosen = hub_variables(environment)
    assert chosen == {"HF_ENDPOINT": "http://hub", "HTTPS_PROXY": "http://proxy", "no_proxy": "x"}
    assert for_an_engine(chosen) == {"HF_ENDPOINT": "http://hub"}


@pytest.mark.parametrize(
    ("environment", "access"),
    [
        ({}, HubAccess("https://huggingface.co")),
        ({"HF_ENDPOINT": "http://mirror:80/", "HF_HUB_OFFLINE": "0"}, HubAccess("http://mirror:80")),
        ({"HF_HUB_OFFLINE": "1"}, HubAccess(offline=True)),
        ({"TRANSFORMERS_OFFLINE": "true"}, HubAccess(offline=True)),
    ],
)
def test_how_the_hub_is_reached_is_read_from_the_environment(
    environment: dict[str, str], access: HubAccess
) -> None:
    assert HubAccess.of(environment, "") == access


def test_the_token_stands_in_no_repr() -> None:
    assert "hf_secret" not in repr(HubAccess.of({}, "hf_secret"))


def test_a_probe_is_seen_and_taken_away_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path))
    node = NodeWeights({}, None, tmp_path)
    probe = node.leave_probe(str(tmp_path / "hub"))
    assert node.sees([probe, "/no/such"], 0.0) == ["/no/such"]
    node.take_probe()
    assert node.sees([probe], 0.0) == [probe]
    assert list((tmp_path / "hub").iterdir()) == []


class Asked(Exception):
    """A process was asked for on a node."""


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(spec: EngineSpec) -> None:
        raise Asked

    monkeypatch.setattr(weights_on_nodes, "node_processes", asked)


async def provided(spec: EngineSpec) -> tuple[str, EngineSpec, list[str]]:
    told: list[str] = []

    async def tell(doing: str, download: Download | None) -> None:
        told.append(doing)

    folder, handed = await provide_weights(spec, tell)
    return folder, handed, told


@pytest.mark.usefixtures("no_processes")
async def test_folders_of_the_engines_only_node_are_found_without_a_process(tmp_path: Path) -> None:
    model, draft = tmp_path / "model", tmp_path / "draft"
    model.mkdir()
    draft.mkdir()
    wanted = spec(speculative_config={"model": str(draft), "num_speculative_tokens": 2})
    folder, handed, _ = await provided(replace(wanted, model=str(model)))
    assert folder == str(model)
    assert handed.vllm_serve_kwargs["speculative_config"]["model"] == str(draft)


@pytest.mark.usefixtures("no_processes")
async def test_the_default_model_is_built_without_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(weights_on_nodes, "provide_default_model", built.append)
    folder, _, told = await provided(replace(spec(), model=DEFAULT_MODEL))
    assert built == [folder] == [str(tmp_path / "local_vllm" / DEFAULT_MODEL)]
    assert told == [BUILDING]


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("model", ["org/model", "/no/such/folder"])
async def test_what_is_no_folder_here_is_asked_of_a_process(model: str) -> None:
    with pytest.raises(Asked):
        await provided(replace(spec(), model=model))


@pytest.mark.usefixtures("no_processes")
async def test_a_disk_that_does_not_answer_is_left_to_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_on_nodes, "FOUND_WITHIN_S", 0.1)
    monkeypatch.setattr(weights_on_nodes, "local_folder", lambda model: time.sleep(0.5))
    with pytest.raises(Asked):
        await provided(replace(spec(), model="/silent/disk"))


@pytest.mark.usefixtures("no_processes")
async def test_with_several_nodes_each_is_asked(tmp_path: Path) -> None:
    nodes = Cluster(tuple(Node(name, name, 4, 4, 64.0, 64.0) for name in ("n1", "n2")))
    (placement,) = plan_placements(nodes, [Topology("policy_model", 1, 8, 1, PackStrategy.SPAN)])
    with pytest.raises(Asked):
        await provided(replace(spec(), model=str(tmp_path), placement=placement))
