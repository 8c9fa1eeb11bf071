"""What vLLM's own placement makes of given flags on given nodes: our model of its Ray data-parallel backend.

A model of behaviour that was read and tried, vLLM 0.32. It decides nothing: tests hold every plan against it,
and `settled` answers whether the order in which vLLM meets the nodes can make a difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from local_vllm.plan.cluster import Node
from local_vllm.plan.placement import Placement, RankPlacement, Slot
from local_vllm.plan.topology import PackStrategy


@dataclass(frozen=True, slots=True)
class Told:
    """The flags and variables that decide. Without `allowed_addresses` vLLM uses every node."""

    strategy: PackStrategy
    world_size: int
    data_parallel_size: int
    data_parallel_size_local: int | None
    master_address: str
    allowed_addresses: tuple[str, ...] = ()

    @property
    def ranks_on_master(self) -> int:
        """What vLLM takes where `data_parallel_size_local` is unset."""
        if self.data_parallel_size_local is not None:
            return self.data_parallel_size_local
        return 1 if self.strategy is PackStrategy.SPAN else self.data_parallel_size


@dataclass(frozen=True, slots=True)
class Placed:
    ranks: tuple[RankPlacement, ...]

    @property
    def gpus_by_node(self) -> dict[str, int]:
        gpus: Counter[str] = Counter()
        for slot in (slot for rank in self.ranks for slot in rank.slots):
            gpus[slot.node_id] += slot.gpus
        return dict(gpus)

    @property
    def cpus_by_node(self) -> dict[str, int]:
        """Each rank's engine core takes one CPU on its first node."""
        return dict(Counter(rank.slots[0].node_id for rank in self.ranks))


@dataclass(frozen=True, slots=True)
class Refused:
    """vLLM raises an error, and the engine does not start."""

    why: str


@dataclass(frozen=True, slots=True)
class Stuck:
    """vLLM accepts, and waits for ever for a placement group that Ray cannot make."""

    why: str


def told(placement: Placement) -> Told:
    """What vllm_flags.py tells vLLM for a placement."""
    topology = placement.topology
    return Told(
        strategy=topology.strategy,
        world_size=topology.world_size,
        data_parallel_size=topology.data_parallel_size,
        data_parallel_size_local=placement.data_parallel_size_local,
        master_address=placement.master_address,
        allowed_addresses=placement.allowed_addresses,
    )


def vllm_placement(nodes: Sequence[Node], flags: Told) -> Placed | Refused | Stuck:
    """The ranks vLLM makes, when it meets the nodes in this order (the master always comes first)."""
    masters = [node for node in nodes if node.address == flags.master_address]
    if len(masters) != 1:
        return Refused(f"{len(masters)} nodes have the master's address {flags.master_address}")
    others = [node for node in nodes if node.address != flags.master_address]
    met = masters + [node for node in others if _allowed(node, flags)]
    refusal = _refusal(met, flags)
    if refusal:
        return Refused(refusal)
    walk = _span if flags.strategy is PackStrategy.SPAN else _whole
    ranks = tuple(RankPlacement(rank, slots) for rank, slots in enumerate(walk(met, flags)))
    if len(ranks) < flags.data_parallel_size:
        return Refused(f"room for {len(ranks)} of {flags.data_parallel_size} ranks")
    return _with_cpus(met, Placed(ranks))


def _allowed(node: Node, flags: Told) -> bool:
    return not flags.allowed_addresses or node.address in flags.allowed_addresses


def _refusal(met: Sequence[Node], flags: Told) -> str | None:
    """What vLLM checks before it places anything; for span, a node without a free GPU does not count."""
    free = [node.gpus_free for node in met if node.gpus_free]
    if not free:
        return "no free GPU on the allowed nodes"
    if flags.ranks_on_master > flags.data_parallel_size:
        return "data_parallel_size_local is above data_parallel_size"
    if flags.strategy is not PackStrategy.SPAN:
        room = met[0].gpus_free // flags.world_size
        return None if room >= flags.ranks_on_master else f"room for {room} ranks on the master"
    if flags.ranks_on_master != 1:
        return "data_parallel_size_local is set under span"
    if not met[0].gpus_free:
        return "no free GPU on the master"
    if flags.world_size <= max(free):
        return f"a node has {max(free)} GPUs, enough for a rank"
    if len(set(free)) > 1:
        return "the nodes have different numbers of free GPUs"
    if flags.world_size % free[0]:
        return f"{flags.world_size} is no multiple of {free[0]} GPUs a node"
    return None


def _whole(met: Sequence[Node], flags: Told) -> Iterator[tuple[Slot, ...]]:
    """strict and fill: the slots of each rank."""
    left = flags.data_parallel_size
    for index, node in enumerate(met):
        room, local = node.gpus_free // flags.world_size, flags.ranks_on_master
        if index > 0 and flags.strategy is PackStrategy.FILL:
            local = room
        if room < local:
            continue
        for _ in range(min(local, left)):
            yield (Slot(node.node_id, node.address, flags.world_size),)
        left -= min(local, left)


def _span(met: Sequence[Node], flags: Told) -> Iterator[tuple[Slot, ...]]:
    slots = [Slot(node.node_id, node.address, node.gpus_free) for node in met if node.gpus_free]
    nodes = flags.world_size // slots[0].gpus
    for rank in range(min(flags.data_parallel_size, len(slots) // nodes)):
        yield tuple(slots[rank * nodes : (rank + 1) * nodes])


def _with_cpus(met: Sequence[Node], placed: Placed) -> Placed | Stuck:
    needed = placed.cpus_by_node
    for node in met:
        if needed.get(node.node_id, 0) > node.cpus_free:
            return Stuck(
                f"{needed[node.node_id]} CPUs are needed on {node.address}, {node.cpus_free:g} are free"
            )
    return placed


def settled(orders: Iterable[Sequence[Node]], flags: Told) -> tuple[Placed, ...] | None:
    """What comes out for these orders of the nodes; None unless all take the same GPUs of each node."""
    outcomes = []
    for nodes in orders:
        outcome = vllm_placement(nodes, flags)
        if not isinstance(outcome, Placed) or (outcomes and outcome.gpus_by_node != outcomes[0].gpus_by_node):
            return None
        outcomes.append(outcome)
    return tuple(outcomes)
