"""A run's status as a person reads it: its state, the drawing of its placement, and where everything is."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.drawing import Paint, draw_placements, letter
from local_vllm.plan.placement import Placement
from local_vllm.runs.record import RunRecord, ServerRecord
from local_vllm.runs.status import ENDED, RunState, run_state


def status_text(record: RunRecord, width: int | None, paint: Paint) -> str:
    """Paragraphs about one run; `width` and `paint` are those of draw_placements."""
    return "\n\n".join(_paragraphs(record, width, paint))


def _paragraphs(record: RunRecord, width: int | None, paint: Paint) -> Iterator[str]:
    yield "\n".join(_heading(record))
    placements = [server.placement for server in record.servers if server.placement]
    if placements:
        cluster = record.cluster or _nodes_of(placements)
        yield draw_placements(cluster, placements, launched=True, width=width, paint=paint)
    index = 0
    for server in record.servers:
        if server.placement is None:
            yield "\n".join(_foreign(server))
        else:
            heading = paint(f"{letter(index)}  {server.name}", index)
            yield "\n".join([f"{heading}  {_state(server)}", *_engine(server)])
            index += 1


def _heading(record: RunRecord) -> Iterator[str]:
    state = run_state(record)
    elsewhere = "" if record.host == socket.gethostname() else f" on {record.host}, not checked from here"
    begun = _age(time.time() - record.begun_at)
    yield f"Run {record.run_id}: {state}, pid {record.pid}{elsewhere}, begun {begun} ago"
    if state is RunState.KILLED:
        yield "It was killed; the next ng_run cleans up after it."
    if record.url:
        yield f"gateway  {record.url}/v1"
    if record.ray_address:
        yield f"Ray      {record.ray_address}{' (private)' if record.private_cluster else ''}"
    yield f"logs     {record.logs}"


def _state(server: ServerRecord) -> str:
    """Which restart it is stands beside the state; how many there were, beside that of an engine that is well again."""
    if server.state == "restarting":
        return f"restarting {server.restarts}/{server.max_restarts}"
    times = f"restarted {server.restarts} time{'s' * (server.restarts > 1)}"
    return f"{server.state} ({times})" if server.restarts and server.state == "healthy" else server.state


def _engine(server: ServerRecord) -> Iterator[str]:
    """What there is to tell of a server with an engine of the run's."""
    over = server.state in ENDED
    yield from _field("why" if over or server.state in ("lost", "stalled") else "doing", server.detail)
    yield from _field("model", server.model)
    yield from _field("URL", server.url)
    engine = server.engine_url or ("none" if over else "no address yet")
    yield from _field("engine", f"{engine}  (on {server.node_address})")
    yield from _field("log", server.log_path)


def _foreign(server: ServerRecord) -> Iterator[str]:
    yield f"{server.name}  {server.implementation}"
    yield from _field("model", server.model)
    yield from _field("uses", ", ".join(server.uses))
    yield from _field("URL", server.url)
    yield from _field("engine", server.engine_url)


def _field(name: str, text: str) -> Iterator[str]:
    """`text` beside its name, on as many lines as it has: none for nothing."""
    for number, line in enumerate(text.splitlines()):
        yield f"   {'' if number else name:<7} {line}".rstrip()


def _nodes_of(placements: Sequence[Placement]) -> Cluster:
    """The nodes as far as placements tell of them: for a run whose cluster has not been read yet."""
    addresses = {slot.node_id: slot.address for p in placements for rank in p.ranks for slot in rank.slots}
    gpus: Counter[str] = Counter()
    for placement in placements:
        gpus.update(placement.gpus_by_node)
    return Cluster(tuple(Node(node, addresses[node], gpus[node], 0, 0, 0) for node in addresses))


def _age(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"
