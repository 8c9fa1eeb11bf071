"""A node of a real engine goes silent: Ray's word for it ends the engine, which is started again on other nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from namespace_cluster import HEAD, NamespaceCluster, namespace_cluster
from ng_run_process import until
from several_nodes import QUESTIONS, Engine, SeveralNodes, several_nodes

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]

# Three checks of ten seconds, a second apart, and what it takes to hear of it.
NOTICED_WITHIN_S = 60.0
BACK_WITHIN_S = 600.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[NamespaceCluster]:
    """One GPU on each node, and one node more than the engine takes."""
    with namespace_cluster({HEAD: 0, "n1": 1, "n2": 1, "n3": 1}) as up:
        yield up


@pytest.fixture(scope="module")
def nodes(cluster: NamespaceCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeveralNodes]:
    engines = {"over_two": Engine(2, 1, 1, "strict", (1, 1))}
    with several_nodes(cluster, tmp_path_factory.mktemp("run"), engines, "0.0.0.0") as started:
        yield started


def addresses(nodes: SeveralNodes) -> list[str]:
    (server,) = nodes.run.record()["servers"]
    return [slot["address"] for rank in server["placement"]["ranks"] for slot in rank["slots"]]


def health(nodes: SeveralNodes) -> tuple[int, str]:
    answer = httpx.get(f"{nodes.run.url}/over_two/health", timeout=20)
    return answer.status_code, answer.text


def test_an_engine_that_loses_a_node_is_started_again_on_another(
    nodes: SeveralNodes, cluster: NamespaceCluster
) -> None:
    master, other = addresses(nodes)
    lost = next(node for node in cluster.nodes.values() if node.address == other)
    lost.run("ip", "link", "set", lost.interface, "down")
    cut = time.monotonic()
    assert until(lambda: health(nodes)[0] == 503, NOTICED_WITHIN_S), health(nodes)
    noticed_s, said = time.monotonic() - cut, health(nodes)[1]
    assert until(lambda: health(nodes)[0] == 200, BACK_WITHIN_S), health(nodes)
    print(f"a node cut off: noticed after {noticed_s:.0f} s ({said}), back after {time.monotonic() - cut:.0f} s")
    spare = {node.address for node in cluster.nodes.values() if node.gpus} - {other}
    assert set(addresses(nodes)) == spare
    for session in ("one", "another", "a third"):
        assert QUESTIONS["text"].ask(nodes.run, "over_two", session)["generation_token_ids"]


def test_nothing_of_the_lost_engine_is_left_on_the_machine(nodes: SeveralNodes) -> None:
    run_id = nodes.run.record()["run_id"]
    folders = sorted(Path("/tmp").glob(f"lv-m-{run_id}-over_two-*"))
    assert [folder.name.rpartition("-")[2] for folder in folders] == ["1"]
