"""What vLLM compiles is kept between runs: in the user's own cache, under a key that no run changes."""

from __future__ import annotations

import ast
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from local_vllm.engine.command import Site, our_environment
from local_vllm.engine.spec import EngineSpec
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.placement import plan_placements
from local_vllm.plan.topology import PackStrategy, Topology


def environment(run: str, launch: int) -> dict[str, str]:
    topology = Topology("policy_model", 2, 2, 1, PackStrategy.STRICT)
    (placement,) = plan_placements(Cluster((Node("n1", "10.0.0.7", 8, 8, 64.0, 64.0),)), [topology])
    spec = EngineSpec(
        run_id=run,
        server="policy_model",
        model="org/model",
        served_name="org/model",
        api_key=f"key of {run}",
        vllm_serve_kwargs={},
        vllm_serve_env_vars={"VLLM_RAY_DP_PACK_STRATEGY": "strict"},
        placement=placement,
        hf_home=Path("/cache"),
        hf_token=None,
        show_stats=False,
        debug=False,
        start_timeout_s=60.0,
        log_path=Path(f"/logs/{run}/policy_model.log"),
    )
    spec = replace(spec, launch=launch)
    return our_environment(spec, Site("gpu", 20000 + launch, "10.0.0.7", f"10.0.0.7:{run}", "/m", {}, spec.scratch, {}))


def vllm_variables() -> tuple[set[str], set[str]]:
    """The variables that vLLM knows, and those of them that make no difference to what it compiles."""
    found = find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("no vLLM is installed")
    tree = ast.parse((Path(found.submodule_search_locations[0]) / "envs.py").read_text())
    values = {
        node.target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
    }
    known = {key.value for key in values["environment_variables"].keys if isinstance(key, ast.Constant)}
    return known, set(ast.literal_eval(values["ignored_factors"]))


def test_two_launches_differ_in_nothing_that_vllm_compiles_for() -> None:
    one, other = environment("1001", 0), environment("1002", 3)
    known, ignored = vllm_variables()
    differ = {name for name in one | other if one.get(name) != other.get(name)}
    assert "VLLM_API_KEY" in differ & known
    assert differ & known <= ignored


def test_what_vllm_compiles_is_not_kept_with_a_run() -> None:
    """vLLM's default is below the user's cache. Its configuration is the run's own, for a list of secrets is there."""
    places = {"VLLM_CACHE_ROOT", "XDG_CACHE_HOME", "HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}
    assert not places & environment("1001", 0).keys()
