"""What each vLLM process on Ray is told of its node, and which variables reach it."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest

from local_vllm.engine.node_network import SWITCH, interface_of, register
from local_vllm.engine.worker_variables import NAMES, worker_variables
from local_vllm.processes.members import FOLDER

SET_HERE = ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SWITCH, *SET_HERE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def on_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray as a process on it sees it, on a node that is known by loopback."""
    ray = SimpleNamespace(is_initialized=lambda: True, util=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1"))
    monkeypatch.setitem(sys.modules, "ray", ray)


def told() -> dict[str, str]:
    assert register() is None, "it brings no platform"
    return {name: os.environ[name] for name in SET_HERE if name in os.environ}


def test_a_process_on_ray_is_told_the_address_and_the_interface_of_its_node(
    on_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    assert told() == {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}


def test_what_somebody_has_set_stays(on_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert told()["GLOO_SOCKET_IFNAME"] == "ib0"


def test_nothing_is_told_unless_it_was_asked_for(on_ray: None) -> None:
    assert told() == {}


def test_nothing_is_told_to_a_process_that_is_not_on_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert told() == {}


def test_an_address_that_no_interface_has_names_none() -> None:
    assert interface_of("192.0.2.254") is None


def test_vllm_finds_it_among_the_plugins_that_it_calls_first() -> None:
    values = {entry.value for entry in entry_points(group="vllm.platform_plugins")}
    assert "local_vllm.engine.node_network:register" in values


def test_variables_of_the_configuration_reach_the_workers_and_those_that_others_name_do_too() -> None:
    configured = {"GLOO_SOCKET_IFNAME": "ib0", "VLLM_USE_RAY": "1"}
    variables = worker_variables(configured, {NAMES: "LD_PRELOAD, OMP_NUM_THREADS"})
    assert variables[NAMES].split(",") == ["GLOO_SOCKET_IFNAME", "LD_PRELOAD", FOLDER, SWITCH, "OMP_NUM_THREADS"]
    assert variables[SWITCH] == "1"


def test_the_names_that_the_configuration_lists_itself_win_over_inherited_ones() -> None:
    assert "OLD" not in worker_variables({NAMES: "NEW"}, {NAMES: "OLD"})[NAMES]
