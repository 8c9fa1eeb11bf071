"""Where Ray Serve is said to answer on a cluster of several nodes, and what cannot be reached."""

from __future__ import annotations

import pytest

from local_vllm.cluster.head_node import HeadNode
from local_vllm.config.schema import GlobalSettings
from local_vllm.errors import RunError
from local_vllm.runs.ingress import Ingress, http_host_problems, own_ingress, shared_ingress, stated_ingress

HERE = HeadNode("n0", "10.0.0.1", is_here=True)
ELSEWHERE = HeadNode("n0", "10.0.0.1", is_here=False)


def settings(host: str) -> GlobalSettings:
    return GlobalSettings(http_host=host, http_port=11000)


@pytest.mark.parametrize("head", [HERE, ELSEWHERE])
def test_a_serve_that_listens_everywhere_is_known_by_the_address_of_the_head_node(head: HeadNode) -> None:
    assert own_ingress(settings("0.0.0.0"), head) == Ingress("http://10.0.0.1:11000", on_head=False)


def test_behind_loopback_the_replicas_stay_on_the_head_node() -> None:
    assert own_ingress(settings("127.0.0.1"), HERE) == Ingress("http://127.0.0.1:11000", on_head=True)
    assert shared_ingress("http://127.0.0.1:11000", HERE).on_head
    assert not shared_ingress("http://10.0.0.1:11000", ELSEWHERE).on_head


def test_loopback_of_another_node_is_refused_with_what_to_change() -> None:
    with pytest.raises(RunError, match=r"on Ray's head node, 10\.0\.0\.1; this is another: set \+\+http_host=0\.0\.0\.0"):
        own_ingress(settings("127.0.0.1"), ELSEWHERE)
    with pytest.raises(RunError, match=r"start the run that is there with \+\+http_host=0\.0\.0\.0"):
        shared_ingress("http://127.0.0.1:11000", ELSEWHERE)


def test_on_this_machine_alone_every_address_is_known_as_loopback() -> None:
    assert stated_ingress(settings("0.0.0.0")).url == "http://127.0.0.1:11000"


@pytest.mark.parametrize(("host", "problems"), [("127.0.0.1", 0), ("localhost", 0), ("0.0.0.0", 0), ("10.0.0.1", 1)])
def test_an_address_at_which_serve_would_not_find_its_own_replicas_is_refused(host: str, problems: int) -> None:
    assert len([*http_host_problems(settings(host))]) == problems
