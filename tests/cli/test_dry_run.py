"""`ng_run +dry_run=true`: what it draws and says, without weights, network and Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from shown_commands import shown_engines

from local_vllm.cli.run import run
from local_vllm.cluster import machine
from local_vllm.config.compose import load_run_config
from local_vllm.engine.command import our_environment, serve_command, serve_environment, typed_command
from local_vllm.plan.placement import plan_placements
from local_vllm.processes.members import FOLDER
from local_vllm.runs import pictures
from local_vllm.runs.dry_run import PORT, shown_site, shown_specs
from local_vllm.runs.engine_specs import engine_specs, topologies

QWEN = "responses_api_models/local_vllm_model/configs/Qwen"
INSTRUCT, THINKING = "Qwen3-30B-A3B-Instruct-2507", "Qwen3-30B-A3B-Thinking-2507"
ONE = f"+config_paths=[{QWEN}/{INSTRUCT}.yaml]"
TWO = f"+config_paths=[{QWEN}/{INSTRUCT}.yaml,{QWEN}/{THINKING}.yaml]"


@dataclass(frozen=True)
class Shown:
    """What a dry run printed."""

    status: int
    text: str
    error: str

    @property
    def rows(self) -> list[str]:
        """The nodes of the drawing: address and cells."""
        drawing = self.text.split("\n\n")[1]
        return [" ".join(line.split()) for line in drawing.splitlines()]

    @property
    def engines(self) -> list[tuple[dict[str, str], list[str]]]:
        """Variables and words of each command line, in its order."""
        return shown_engines(self.text)


def flags(words: list[str]) -> dict[str, str]:
    """The value after each flag; those of switches are the next flag, and nobody asks for them."""
    return {word: after for word, after in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


Dry = Callable[..., Shown]


@pytest.fixture
def dry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Dry:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("RAY_ADDRESS", "HF_TOKEN", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "env.yaml").touch()

    def shown(*words: str) -> Shown:
        status = run([*words, "+dry_run=true"])
        return Shown(status, *capsys.readouterr())

    return shown


def gpus(letter_and_rank: str, count: int = 8) -> str:
    return " ".join([letter_and_rank] * count)


def sizes(server: str, **values: int) -> list[str]:
    path = f"++{server}.responses_api_models.local_vllm_model.vllm_serve_kwargs"
    return [f"{path}.{name}_parallel_size={value}" for name, value in values.items()]


def span(server: str) -> str:
    return f"++{server}.local_vllm_model.vllm_serve_env_vars.VLLM_RAY_DP_PACK_STRATEGY=span"


# Command line -> described cluster, rows of the drawing, (DP, TP, PP, DP on a node, nodes) of each engine.
TOPOLOGIES = {
    "1 node, 1 instance (TP=8)": (
        [ONE],
        "1x8",
        [f"node1 {gpus('A0')}"],
        [("1", "8", "1", None, "node1")],
    ),
    "1 node, 1 instance (DP=2, TP=4)": (
        [ONE, *sizes(INSTRUCT, data=2, tensor=4)],
        "1x8",
        [f"node1 {gpus('A0', 4)} {gpus('A1', 4)}"],
        [("2", "4", "1", "2", "node1")],
    ),
    "the same by policy_model": (
        [ONE, *sizes("policy_model", data=2, tensor=4)],
        "1x8",
        [f"node1 {gpus('A0', 4)} {gpus('A1', 4)}"],
        [("2", "4", "1", "2", "node1")],
    ),
    "1 node, TP=2 of PP=4": (
        [ONE, *sizes(INSTRUCT, tensor=2, pipeline=4)],
        "1x8",
        [f"node1 {gpus('A0')}"],
        [("1", "2", "4", None, "node1")],
    ),
    "1 node, 2 instances (TP=4 each)": (
        [TWO, *sizes(INSTRUCT, tensor=4), *sizes(THINKING, tensor=4)],
        "1x8",
        [f"node1 {gpus('A0', 4)} {gpus('B0', 4)}"],
        [("1", "4", "1", None, "node1")] * 2,
    ),
    "2 nodes, 2 instances (TP=8 each), as copies": (
        [ONE, *sizes(INSTRUCT, data=2, tensor=8)],
        "2x8",
        [f"node1 {gpus('A0')}", f"node2 {gpus('A1')}"],
        [("2", "8", "1", "1", "node1,node2")],
    ),
    "2 nodes, 2 instances (TP=8 each), as servers": (
        [TWO],
        "2x8",
        [f"node1 {gpus('A0')}", f"node2 {gpus('B0')}"],
        [("1", "8", "1", None, "node1"), ("1", "8", "1", None, "node2")],
    ),
    "2 nodes, 1 instance of 16": (
        [ONE, *sizes(INSTRUCT, tensor=16), span(INSTRUCT)],
        "2x8",
        [f"node1 {gpus('A0')}", f"node2 {gpus('A0')}"],
        [("1", "16", "1", None, "node1,node2")],
    ),
    "2 nodes, 1 instance of TP=8 x PP=2": (
        [ONE, *sizes(INSTRUCT, pipeline=2), span(INSTRUCT)],
        "2x8",
        [f"node1 {gpus('A0')}", f"node2 {gpus('A0')}"],
        [("1", "8", "2", None, "node1,node2")],
    ),
    "4 nodes, 2 copies of 16": (
        [ONE, *sizes(INSTRUCT, data=2, tensor=16), span(INSTRUCT)],
        "4x8",
        [f"node{i} {gpus(rank)}" for i, rank in enumerate(["A0", "A0", "A1", "A1"], start=1)],
        [("2", "16", "1", None, "node1,node2,node3,node4")],
    ),
    "4 nodes, 2 instances of 16": (
        [TWO, *sizes(INSTRUCT, tensor=16), *sizes(THINKING, tensor=16), span(INSTRUCT), span(THINKING)],
        "4x8",
        [f"node{i} {gpus(rank)}" for i, rank in enumerate(["A0", "A0", "B0", "B0"], start=1)],
        [("1", "16", "1", None, "node1,node2"), ("1", "16", "1", None, "node3,node4")],
    ),
    "1 node, TP=4 of PCP=2": (
        [ONE, *sizes(INSTRUCT, tensor=4, prefill_context=2)],
        "1x8",
        [f"node1 {gpus('A0')}"],
        [("1", "4", "1", None, "node1")],
    ),
    "a head without GPUs and 2 nodes": (
        [ONE, *sizes(INSTRUCT, data=2, tensor=8)],
        "1x0+2x8",
        ["node1 no GPUs", f"node2 {gpus('A0')}", f"node3 {gpus('A1')}"],
        [("2", "8", "1", "1", "node2,node3")],
    ),
}


@pytest.mark.parametrize(("words", "cluster", "rows", "engines"), TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_a_sample_topology_is_drawn_with_the_command_line_of_each_engine(
    dry: Dry, words: list[str], cluster: str, rows: list[str], engines: list[tuple[str | None, ...]]
) -> None:
    shown = dry(*words, f"+cluster={cluster}")

    assert (shown.status, shown.error) == (0, "")
    assert shown.rows == rows
    for (variables, command), (dp, tp, pp, local, nodes) in zip(shown.engines, engines, strict=True):
        given = flags(command)
        assert command[:2] == ["vllm", "serve"]
        assert given["--data-parallel-size"] == dp
        assert given["--tensor-parallel-size"] == tp
        assert given["--pipeline-parallel-size"] == pp
        assert given.get("--data-parallel-size-local") == local
        assert variables["VLLM_RAY_DP_PLACEMENT_NODE_IPS"] == nodes
        assert variables["VLLM_HOST_IP"] == variables["VLLM_DP_MASTER_IP"] == nodes.split(",")[0]


def test_a_model_is_planned_by_its_name_alone(dry: Dry) -> None:
    shown = dry(f"+model=Qwen/{INSTRUCT}", "+cluster=1x8")

    assert shown.rows == [f"node1 {gpus('A0')}"]
    assert shown.engines[0][1][2] == f"Qwen/{INSTRUCT}"


def test_engines_come_in_the_order_of_their_launch(dry: Dry) -> None:
    shown = dry(TWO, *sizes(INSTRUCT, tensor=2), *sizes(THINKING, tensor=16), span(THINKING), "+cluster=3x8")

    assert [words[2] for _, words in shown.engines] == [f"Qwen/{THINKING}", f"Qwen/{INSTRUCT}"]
    first, second = f"B  {THINKING}  (launch 1 of 2)", f"A  {INSTRUCT}  (launch 2 of 2)"
    assert shown.text.index(first) < shown.text.index(second)


def test_an_engine_that_is_launched_after_another_one_says_so(dry: Dry) -> None:
    shown = dry(TWO, *sizes(INSTRUCT, tensor=12), span(INSTRUCT), *sizes(THINKING, tensor=2), "+cluster=1x6+1x8")

    assert f"B  {THINKING}  (launch 1 of 2)" in shown.text
    assert f"A  {INSTRUCT}  (launch 2 of 2, after B)" in shown.text


def test_each_engine_has_its_url_and_its_log(dry: Dry, tmp_path: Path) -> None:
    shown = dry(ONE, "+cluster=1x8", "++http_port=12345")

    assert f"URL  http://127.0.0.1:12345/{INSTRUCT}/v1" in shown.text
    logs = f"{tmp_path}/state/local_vllm/logs/<date>-<time>-<run>"
    assert f"log  {logs}/{INSTRUCT}.log  (on node1)" in shown.text
    assert "Gateway  http://127.0.0.1:12345/v1" in shown.text


def test_what_is_known_only_on_the_node_is_a_word_that_a_shell_leaves_alone(dry: Dry) -> None:
    variables, words = dry(ONE, "+cluster=1x8").engines[0]

    assert flags(words)["--port"] == "<free port>"
    assert variables["RAY_ADDRESS"] == "<address of Ray>"


def test_no_secret_is_shown(dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_leaked")
    server = f"++{INSTRUCT}.local_vllm_model"
    shown = dry(
        ONE,
        "+cluster=1x8",
        f"{server}.api_key=sk-leaked",
        f"+{server[2:]}.vllm_serve_env_vars.WANDB_API_KEY=leaked",
        f"+{server[2:]}.vllm_serve_env_vars.LMCACHE_REMOTE_URL=redis://me:leaked@cache:1",
        f"+{server[2:]}.vllm_serve_kwargs.kv_transfer_config={{extra:{{password:leaked}}}}",
        f"+{server[2:]}.vllm_serve_env_vars.NCCL_DEBUG=INFO",
    )
    variables, words = shown.engines[0]

    assert shown.status == 0
    assert "leaked" not in shown.text
    assert {variables[name] for name in ("VLLM_API_KEY", "HF_TOKEN", "WANDB_API_KEY")} == {"***"}
    assert variables["LMCACHE_REMOTE_URL"] == "redis://***@cache:1"
    assert variables["NCCL_DEBUG"] == "INFO"
    assert flags(words)["--kv-transfer-config"] == '{"extra": {"password": "***"}}'


def test_only_our_own_and_the_configs_variables_are_shown(dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")

    assert "eth7" not in dry(ONE, "+cluster=1x8").text


def test_variables_of_ng_run_by_which_the_hub_is_reached_are_shown_because_every_engine_gets_them(
    dry: Dry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://me:leaked@hub.local")
    shown = dry(ONE, "+cluster=1x8")

    assert shown.engines[0][0]["HF_ENDPOINT"] == "http://***@hub.local"
    assert "vLLM is given the folder that it was fetched to" in shown.text


def test_a_model_in_a_folder_is_shown_by_its_absolute_path(dry: Dry, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    shown = dry("+config_paths=[local_vllm_model.yaml]", "+policy_model_name=weights", "+cluster=1x8")

    assert shown.engines[0][1][2] == str(tmp_path / "weights")
    assert flags(shown.engines[0][1])["--served-model-name"] == "weights"
    assert "fetched" not in shown.text


OTHERS = """
    policy_base_url: http://vllm-1:8000/v1,http://vllm-2:8000/v1
    policy_api_key: sk-leaked
    policy_model_name: org/m
"""


def test_servers_without_an_engine_of_ours_are_listed_with_where_they_point(dry: Dry, tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text(OTHERS)
    shown = dry(
        f"+config_paths=[{QWEN}/{INSTRUCT}.yaml,vllm_model.yaml,local_vllm_model_proxy.yaml]",
        f"++policy_model_proxy.local_vllm_model_proxy.model_server.name={INSTRUCT}",
        "+cluster=1x8",
    )

    assert "policy_model  vllm_model, org/m at http://vllm-1:8000/v1, http://vllm-2:8000/v1" in shown.text
    assert f"policy_model_proxy  local_vllm_model_proxy, that of {INSTRUCT}" in shown.text
    assert "leaked" not in shown.text
    assert len(shown.engines) == 1


def test_a_configuration_without_engines_needs_no_cluster(dry: Dry, tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text(OTHERS)
    shown = dry("+config_paths=[openai_model.yaml]", "+ray_address=127.0.0.1:1")

    assert (shown.status, shown.error) == (0, "")
    assert "policy_model  openai_model, org/m at http://vllm-1" in shown.text
    assert "no server of this configuration has an engine" in shown.text


def test_a_plan_that_does_not_fit_ends_with_status_1_and_one_sentence_beside_the_nodes(dry: Dry) -> None:
    shown = dry(ONE, "+cluster=1x0+2x4")

    assert shown.status == 1
    assert shown.error.startswith(f"ng_run: {INSTRUCT}: TP 8 needs 8 GPUs on one node under strict")
    assert len(shown.error.splitlines()) == 1
    assert shown.rows == ["node1 no GPUs", "node2 . . . .", "node3 . . . ."]


def test_gpus_and_cpus_that_are_taken_are_not_planned_on(dry: Dry) -> None:
    taken = "+cluster=[{gpus:8,gpus_free:3},{gpus:8,cpus:1,cpus_free:0},{gpus:8}]"
    shown = dry(ONE, *sizes(INSTRUCT, tensor=4), taken)

    assert shown.rows == ["node1 . . . # # # # #", f"node2 {gpus('.')}", f"node3 {gpus('A0', 4)} . . . ."]


def test_a_described_cluster_has_cpus_enough_for_ranks_of_one_gpu(dry: Dry) -> None:
    assert dry(ONE, *sizes(INSTRUCT, data=8, tensor=1), "+cluster=1x8").status == 0


def test_a_wrong_configuration_ends_with_status_2(dry: Dry) -> None:
    shown = dry(ONE, "+cluster=4y8", "++http_port=x")

    assert shown.status == 2
    assert "cluster: `4y8` is not a cluster" in shown.error
    assert "http_port: must be a whole number" in shown.error


@pytest.mark.skipif(machine.gpu_count() > 0, reason="this machine has real GPUs")
def test_without_a_cluster_the_plan_is_for_this_machine_and_its_logical_gpus(dry: Dry) -> None:
    shown = dry(*sizes("policy_model", data=2, tensor=2), "+logical_gpus=6")

    assert shown.rows == ["this-machine A0 A0 A1 A1 . ."]
    assert "which has no GPU: Ray is told of 6 logical ones" in shown.text


@pytest.mark.skipif(machine.gpu_count() > 0, reason="this machine has real GPUs")
def test_real_gpus_are_those_that_ray_would_see(dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    shown = dry()

    assert shown.rows == ["this-machine A0 ."]
    assert "a plan for this machine: 2 GPUs." in shown.text


def test_a_cluster_that_is_not_there_is_named(dry: Dry) -> None:
    shown = dry("+ray_address=127.0.0.1:1")

    assert shown.status == 1
    assert "no Ray cluster answers at 127.0.0.1:1" in shown.error


def test_a_terminal_gets_colours_unless_it_wants_none(dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[1;38;5;33mA0" in dry(ONE, "+cluster=1x8").text
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in dry(ONE, "+cluster=1x8").text


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_the_launch_runs_what_a_dry_run_shows(dry: Dry, tmp_path: Path, kind: str) -> None:
    """The same configuration, once with the words of a dry run and once as it is launched on the node."""
    words = [TWO, *sizes(INSTRUCT, data=2, tensor=2), *sizes(THINKING, tensor=2)]
    config = load_run_config(words, cwd=tmp_path)
    node = load_run_config(["+cluster=1x8", "+dry_run=true"], cwd=tmp_path).settings.cluster
    picture = replace(pictures.described(config, node), kind=kind)
    placements = plan_placements(picture.cluster, topologies(config))
    logs = shown_specs(config, picture, placements)[0].log_path.parent
    for shown, launched in zip(
        shown_specs(config, picture, placements), engine_specs(config, placements, "r1", logs), strict=True
    ):
        foreseen = shown_site(shown, picture)
        site = replace(foreseen, port=20001, ray_address="10.0.0.1:6379", environment={"PATH": "/bin"})
        secrets = {"VLLM_API_KEY": launched.api_key, "HF_TOKEN": launched.hf_token}
        words = ["20001" if word == PORT else word for word in typed_command(shown, foreseen)]
        executed = serve_command(launched, site)
        assert words[words.index(shown.model) :] == executed[executed.index(shown.model) :]
        variables = our_environment(shown, foreseen) | {"RAY_ADDRESS": "10.0.0.1:6379", "PATH": "/bin"}
        variables |= {name: secrets[name] for name in secrets if name in variables}
        of_the_run = variables.keys() & {FOLDER, "VLLM_RPC_BASE_PATH", "PROMETHEUS_MULTIPROC_DIR"}
        variables |= dict.fromkeys(of_the_run, str(launched.members))
        assert variables == serve_environment(launched, site)
