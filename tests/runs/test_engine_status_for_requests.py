"""What an engine's status means to the requests that want it."""

from __future__ import annotations

import pytest

from local_vllm.engine.spec import EngineState, EngineStatus
from local_vllm.serving.endpoints import NotReady, Ready
from local_vllm.serving.engine_endpoints import endpoint_state


def status(state: EngineState, detail: str = "", **more: object) -> EngineStatus:
    return EngineStatus(version=3, server="policy_model", model="org/model", state=state, detail=detail, **more)


def test_a_healthy_engine_is_one_endpoint_with_its_key_and_ranks() -> None:
    healthy = status(EngineState.HEALTHY, base_url="http://10.0.0.7:20001/v1", api_key="k", ranks=2)
    match endpoint_state(healthy):
        case Ready((endpoint,)):
            assert (endpoint.base_url, endpoint.api_key, endpoint.model, endpoint.ranks) == (
                "http://10.0.0.7:20001/v1",
                "k",
                "org/model",
                2,
            )
        case other:
            raise AssertionError(other)


def test_a_starting_engine_says_what_it_is_doing_and_to_come_back() -> None:
    state = endpoint_state(status(EngineState.STARTING, "loading weights"))
    assert isinstance(state, NotReady)
    assert state.retry_after_s
    assert "loading weights" in state.message


def test_a_failed_engine_says_why_in_one_line_and_not_to_come_back() -> None:
    state = endpoint_state(status(EngineState.FAILED, "vLLM ended with status 1; the last lines:\nsecret traceback"))
    assert isinstance(state, NotReady)
    assert state.retry_after_s is None
    assert "status 1" in state.message
    assert "traceback" not in state.message


@pytest.mark.parametrize("state", [EngineState.LOST, EngineState.STALLED, EngineState.RESTARTING])
def test_an_engine_that_is_started_again_is_worth_waiting_for(state: EngineState) -> None:
    away = endpoint_state(status(state, "ray::RayWorkerProc (pid 7) has ended", restarts=2, max_restarts=5))
    assert isinstance(away, NotReady)
    assert away.passes
    assert away.retry_after_s
    assert "RayWorkerProc (pid 7) has ended" in away.message


def test_a_restart_says_which_it_is() -> None:
    away = endpoint_state(status(EngineState.RESTARTING, "loading weights", restarts=2, max_restarts=5))
    assert "the engine is restarting 2/5: loading weights" in away.message


@pytest.mark.parametrize("state", [EngineState.STARTING, EngineState.FAILED, EngineState.STOPPING])
def test_nobody_waits_for_any_other_engine(state: EngineState) -> None:
    assert not endpoint_state(status(state)).passes
