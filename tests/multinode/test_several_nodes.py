"""Real engines over several nodes, under a head that has no GPUs: the seeds' topologies, made small.

scripts/sample-topologies has more of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping

import pytest
from namespace_cluster import HEAD, NamespaceCluster, namespace_cluster
from ng_run_process import GONE_WITHIN_S, until
from several_nodes import (
    Engine,
    SeveralNodes,
    check_answers,
    check_network,
    check_placement,
    check_ranks_worked,
    check_replicas,
    left_on,
    several_nodes,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

# Each run with the address that it listens on; None is the default, loopback.
KILLED = (None, {"killed": Engine(1, 1, 1, "strict", (1,))})
if os.environ.get("LOCAL_VLLM_LONG"):
    GPUS = {HEAD: 0} | {f"n{number}": 2 for number in range(1, 7)}
    ENGINES = {
        "strict_dp2_tp2": Engine(2, 2, 1, "strict", (2, 2)),
        "span_tp4": Engine(1, 4, 1, "span", (2, 2)),
        "span_pp2_tp2": Engine(1, 2, 2, "span", (2, 2)),
    }
    RUNS = {"engines over two nodes each": ("0.0.0.0", ENGINES), "an engine that is killed": KILLED}
else:
    # Twenty processes that import vLLM take a few cores too long for every change.
    GPUS = {HEAD: 0} | {f"n{number}": 1 for number in range(1, 5)}
    ENGINES = {"span_dp2_tp2": Engine(2, 2, 1, "span", (1, 1, 1, 1))}
    RUNS = {"an engine over four nodes": ("0.0.0.0", ENGINES), "an engine that is killed": KILLED}

WHO_IS_HEAD = """
import json
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from local_vllm.cluster.head_node import head_node

@ray.remote(num_cpus=0)
def here():
    head = head_node()
    return head.address, head.is_here

there = lambda node: NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
asked = {node["NodeManagerAddress"]: here.options(scheduling_strategy=there(node)).remote() for node in ray.nodes()}
print(json.dumps({address: ray.get(answer, timeout=50) for address, answer in asked.items()}))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[NamespaceCluster]:
    with namespace_cluster(GPUS) as up:
        yield up


@pytest.fixture(scope="module", params=RUNS)
def nodes(
    request: pytest.FixtureRequest, cluster: NamespaceCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SeveralNodes]:
    http_host, engines = RUNS[request.param]
    with several_nodes(cluster, tmp_path_factory.mktemp("run"), engines, http_host) as started:
        yield started


def test_every_process_is_on_the_node_that_was_planned_for_it(nodes: SeveralNodes) -> None:
    nodes.check(check_placement)


def test_no_engine_is_known_by_loopback_and_no_proxy_is_asked(nodes: SeveralNodes) -> None:
    nodes.check(check_network)


def test_the_ingress_is_on_the_head_node_and_what_only_loopback_leads_to_is_there_too(nodes: SeveralNodes) -> None:
    nodes.check(check_replicas)


def test_engines_over_nodes_give_the_tokens_of_one_process(
    nodes: SeveralNodes, one_process: Mapping[str, dict]
) -> None:
    nodes.check(check_answers, one_process)
    nodes.check(check_ranks_worked)


def test_a_run_that_is_over_leaves_nothing_on_any_node(nodes: SeveralNodes) -> None:
    if "killed" in nodes.engines:
        nodes.run.process.kill()
        nodes.run.process.wait(5)
    else:
        assert nodes.run.stop() == 0
        # Ray kills vLLM's workers, which then cannot remove their shared memory.
        assert [left for left in nodes.run.leftovers() if "/dev/shm" not in left] == []
    assert until(lambda: not left_on(nodes), 2 * GONE_WITHIN_S), left_on(nodes)


def test_every_node_knows_the_head_and_whether_it_is_there(cluster: NamespaceCluster) -> None:
    told = json.loads(cluster.ask_ray(WHO_IS_HEAD))
    assert told == {node.address: [cluster.head.address, name == HEAD] for name, node in cluster.nodes.items()}
