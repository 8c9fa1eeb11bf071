"""Weights on every node of an engine, once for each disk: three real Ray nodes, two of which share theirs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fetching_process import need_mounts
from nodes_and_disks import APART, FIRST, SHARING, Driver, Nodes, nodes_and_disks
from stand_in_hub import StandInHub

from local_vllm.cluster.machine import gpu_count

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

ALL = [FIRST, SHARING, APART]
TINY = "tiny-org/tiny-model"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    need_mounts()
    if gpu_count():
        pytest.skip("these tests count logical GPUs; this machine has real ones")
    with nodes_and_disks(tmp_path_factory.mktemp("disks") / "disk") as started:
        yield started


@pytest.fixture(scope="module")
def driver(nodes: Nodes) -> Iterator[Driver]:
    started = Driver(nodes)
    yield started
    started.end()


def on_all(hub: StandInHub, hf_home: Path, model: str = TINY) -> dict:
    return {"model": model, "endpoint": hub.url, "nodes": ALL, "hf_home": str(hf_home)}


def loaded_bytes(hub: StandInHub) -> int:
    names = (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    )
    return sum(len(hub.repositories[TINY].files[name]) for name in names)


def comes_no_more(hub: StandInHub) -> bool:
    """Whether the download has ended a second and a half from now."""
    time.sleep(1.5)
    served = hub.bytes_served
    time.sleep(0.8)
    return hub.bytes_served == served


def wait_for_bytes(hub: StandInHub, size: int) -> None:
    deadline = time.monotonic() + 60
    while hub.bytes_served < size:
        assert time.monotonic() < deadline, "the download has not begun"
        time.sleep(0.02)


def test_weights_come_once_for_each_disk_and_not_a_second_time(
    nodes: Nodes, driver: Driver, hub: StandInHub
) -> None:
    provided = driver.order("provide", **on_all(hub, nodes.disk / "hf"))
    folder = Path(provided["folder"])
    for seen in (folder, nodes.on_apart(folder)):
        assert (seen / "model.safetensors").read_bytes() == hub.repositories[TINY].files["model.safetensors"]
    assert hub.bytes_served == 2 * loaded_bytes(hub)
    assert provided["told"][0] == [f"looking for {TINY}", 0, 0]
    assert provided["told"][-1] == [
        f"fetching {TINY} on 2 nodes",
        2 * loaded_bytes(hub),
        2 * loaded_bytes(hub),
    ]
    for cache in (nodes.disk / "hf" / "hub", nodes.on_apart(nodes.disk / "hf" / "hub")):
        assert not list(cache.glob(".local_vllm-probe-*"))
    hub.forget()
    assert driver.order("provide", **on_all(hub, nodes.disk / "hf"))["folder"] == str(folder)
    assert [request for request in hub.requests if TINY in request] == [f"GET /api/models/{TINY}"]


def test_the_default_model_is_built_on_each_disk(nodes: Nodes, driver: Driver, hub: StandInHub) -> None:
    built = Path(driver.order("provide", **on_all(hub, nodes.disk / "hf", "local-vllm-default"))["folder"])
    assert (built / "model.safetensors").is_file()
    assert (nodes.on_apart(built) / "model.safetensors").is_file()


def test_a_folder_must_be_there_on_every_node(nodes: Nodes, driver: Driver, hub: StandInHub) -> None:
    mine = nodes.disk / "mine"
    mine.mkdir()
    order = on_all(hub, nodes.disk / "hf", str(mine))
    assert f"the folder {mine} is not there on {APART}:" in driver.order("provide", **order)["error"]
    assert driver.order("provide", **(order | {"nodes": [FIRST, SHARING]}))["folder"] == str(mine)


def test_an_error_names_the_node(nodes: Nodes, driver: Driver, hub: StandInHub) -> None:
    hub.repositories[TINY].gated = frozenset()
    refused = driver.order("provide", **on_all(hub, nodes.disk / "gated"))["error"]
    assert refused.startswith(f"on {FIRST}: {TINY} is gated")


def test_a_download_that_is_cancelled_ends_everywhere_at_once(
    nodes: Nodes, driver: Driver, hub: StandInHub
) -> None:
    hub.faults.bytes_per_s = 150_000
    cancelled = driver.order("cancel", **on_all(hub, nodes.disk / "cancelled"))
    assert cancelled["cancelled"]
    assert cancelled["took_s"] < 2
    assert hub.bytes_served > 0
    assert comes_no_more(hub)


def test_a_download_ends_with_the_actor_that_began_it(nodes: Nodes, driver: Driver, hub: StandInHub) -> None:
    hub.faults.bytes_per_s = 150_000
    driver.order("own", **on_all(hub, nodes.disk / "owned"))
    wait_for_bytes(hub, 100_000)
    driver.order("kill the owner")
    assert comes_no_more(hub)


def test_a_killed_run_ends_its_downloads(nodes: Nodes, hub: StandInHub) -> None:
    hub.faults.bytes_per_s = 150_000
    driver = Driver(nodes)
    driver.begin("provide", **on_all(hub, nodes.disk / "killed"))
    wait_for_bytes(hub, 100_000)
    driver.end()
    assert comes_no_more(hub)
