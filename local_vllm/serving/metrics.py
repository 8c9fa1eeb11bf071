"""What this process tells Prometheus of model servers: the states of their engines, and what became of requests.

Requests are counted in plain numbers as they end; the text is made when somebody asks for it, beside the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from local_vllm.engine.spec import EngineState
from local_vllm.serving.endpoints import NotReady, Ready
from local_vllm.serving.replies import Reply
from local_vllm.serving.requests import Request
from local_vllm.serving.traffic import BUCKETS_S, Traffic
from local_vllm.serving.watched_endpoints import UNREACHABLE

READY = "ready"
STATES = (READY, *(str(state) for state in EngineState if state is not EngineState.HEALTHY), UNREACHABLE)
CONTENT_TYPE = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)

STATE = "local_vllm_engine_state"
RESTARTS = "local_vllm_engine_restarts"
IN_FLIGHT = "local_vllm_requests_in_flight"
REQUESTS = "local_vllm_requests_total"
DURATION = "local_vllm_request_duration_seconds"

_BOUNDS = (*map(str, BUCKETS_S), "+Inf")


class Load(Protocol):
    """How many requests a server answers now."""

    in_flight: int


class Server(Protocol):
    """What is told of a model server."""

    name: str
    admission: Load
    traffic: Traffic

    def state(self) -> Ready | NotReady: ...


class MetricsPage:
    """The answer to `GET /metrics` about `servers`, in the process that Serve calls `replica`.

    `unrouted` has the requests that were for none of them.
    """

    def __init__(self, servers: Sequence[Server], replica: str = "", unrouted: Traffic | None = None) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Servers(servers, replica, unrouted))

    async def get(self, request: Request) -> Reply:
        return Reply(200, await asyncio.to_thread(generate_latest, self._registry), CONTENT_TYPE)


class _Servers(Collector):
    """Reads what is so now. It runs in a thread: whatever may grow meanwhile is copied in one step."""

    def __init__(self, servers: Sequence[Server], replica: str, unrouted: Traffic | None) -> None:
        self._servers = tuple(servers)
        self._replica = replica
        self._traffic = [(server.name, server.traffic) for server in servers]
        if unrouted is not None:
            self._traffic.append(("", unrouted))

    def collect(self) -> Iterator[Metric]:
        states = [(server.name, server.state()) for server in self._servers]
        yield _states(states)
        yield _restarts(states)
        yield self._in_flight()
        yield self._requests()
        yield self._durations()

    def _in_flight(self) -> Metric:
        gauge = GaugeMetricFamily(IN_FLIGHT, "Requests that are being answered.", labels=["server", "replica"])
        for server in self._servers:
            gauge.add_metric([server.name, self._replica], server.admission.in_flight)
        return gauge

    def _requests(self) -> Metric:
        labels = ["server", "replica", "route", "code"]
        counter = CounterMetricFamily(REQUESTS, "Requests that have ended, by HTTP status.", labels=labels)
        for name, traffic in self._traffic:
            for (route, status), count in traffic.answers.copy().items():
                counter.add_metric([name, self._replica, route, str(status)], count)
        return counter

    def _durations(self) -> Metric:
        labels = ["server", "replica", "route"]
        histogram = HistogramMetricFamily(DURATION, "Seconds to the end of an answer that is no error.", labels=labels)
        for name, traffic in self._traffic:
            for route, durations in traffic.durations.copy().items():
                buckets = list(zip(_BOUNDS, accumulate(durations.counts.copy())))
                histogram.add_metric([name, self._replica, route], buckets, durations.total_s)
        return histogram


def _states(states: Sequence[tuple[str, Ready | NotReady]]) -> Metric:
    gauge = GaugeMetricFamily(STATE, "1 for the state that the server's engine is in.", labels=["server", "state"])
    for name, state in states:
        word = READY if isinstance(state, Ready) else state.state
        for each in dict.fromkeys((*STATES, word)):
            gauge.add_metric([name, each], each == word)
    return gauge


def _restarts(states: Sequence[tuple[str, Ready | NotReady]]) -> Metric:
    said = "How often the engine was started again since it was last well for five minutes."
    gauge = GaugeMetricFamily(RESTARTS, said, labels=["server"])
    for name, state in states:
        if state.restarts is not None:
            gauge.add_metric([name], state.restarts)
    return gauge
