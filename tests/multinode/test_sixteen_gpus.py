"""The sample topologies on two nodes of eight GPUs, under a head that has none: those of `scripts/topologies` that fit.

Long on few cores: scripts/sample-topologies runs them. tests/multinode/test_several_nodes.py has smaller ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from namespace_cluster import HEAD, NamespaceCluster, namespace_cluster
from several_nodes import Engine, SeveralNodes, check_answers, check_network, check_placement, several_nodes

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SAMPLES = {
    "2-nodes-tp16-span": {"whole": Engine(1, 16, 1, "span", (8, 8))},
    "2-nodes-dp2-tp8": {"whole": Engine(2, 8, 1, "strict", (8, 8))},
    "2-nodes-two-tp8": {name: Engine(1, 8, 1, "strict", (8,)) for name in ("left", "right")},
    "1-node-tp8": {"whole": Engine(1, 8, 1, "strict", (8,))},
    "1-node-dp2-tp4": {"whole": Engine(2, 4, 1, "strict", (8,))},
    "1-node-two-tp4": {name: Engine(1, 4, 1, "strict", (4,)) for name in ("left", "right")},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[NamespaceCluster]:
    with namespace_cluster({HEAD: 0, "n1": 8, "n2": 8}) as up:
        yield up


@pytest.fixture(scope="module", params=SAMPLES)
def nodes(
    request: pytest.FixtureRequest, cluster: NamespaceCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SeveralNodes]:
    folder = tmp_path_factory.mktemp("run")
    with several_nodes(cluster, folder, SAMPLES[request.param], "0.0.0.0") as started:
        yield started


def test_every_worker_is_on_the_node_that_was_planned_for_it(nodes: SeveralNodes) -> None:
    check_placement(nodes)
    check_network(nodes)


def test_a_sample_gives_the_tokens_of_one_process(nodes: SeveralNodes, one_process: Mapping[str, dict]) -> None:
    # Sixteen workers that share two cores take seconds for a token.
    check_answers(nodes, one_process, ("text", "few sampled"))
