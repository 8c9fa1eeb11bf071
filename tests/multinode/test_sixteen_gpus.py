"""One real engine over two nodes of eight GPUs, under a head that has none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from namespace_cluster import HEAD, namespace_cluster
from several_nodes import Engine, SeveralNodes, check_answers, check_network, check_placement, several_nodes

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeveralNodes]:
    with namespace_cluster({HEAD: 0, "n1": 8, "n2": 8}) as cluster:
        engines = {"span_tp16": Engine(1, 16, 1, "span", (8, 8))}
        with several_nodes(cluster, tmp_path_factory.mktemp("run"), engines, "0.0.0.0") as started:
            yield started


def test_the_sixteen_workers_are_on_the_two_nodes(nodes: SeveralNodes) -> None:
    check_placement(nodes)
    check_network(nodes)


def test_an_engine_of_tp_16_gives_the_tokens_of_one_process(
    nodes: SeveralNodes, one_process: Mapping[str, dict]
) -> None:
    # Sixteen workers that share a few cores take long for a token.
    check_answers(nodes, one_process, ("text", "sampled"))
