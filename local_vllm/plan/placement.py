"""All servers of a run on a cluster: which nodes each takes, and in which order they must be launched.

Pure. What vLLM has to be told for it is in vllm_flags.py; why there is none is said in refusal.py.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from local_vllm.errors import PlacementError
from local_vllm.plan import refusal
from local_vllm.plan.cluster import Cluster, Node
from local_vllm.plan.options import Option, shape_of
from local_vllm.plan.search import NoRoom, Step, search
from local_vllm.plan.stock import Kind, stock_of
from local_vllm.plan.topology import PackStrategy, Topology

TRIES = 20_000
"""How many ways to place a server the search may look at before it gives up, and says so."""
_TRIES_TO_EXPLAIN = 500


@dataclass(frozen=True, slots=True)
class Slot:
    """GPUs of one rank on one node."""

    node_id: str
    address: str
    gpus: int


@dataclass(frozen=True, slots=True)
class RankPlacement:
    """One data-parallel rank; its first slot is the node of its engine core."""

    rank: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """One server on its nodes.

    `vllm serve` runs on the master node, which holds rank 0, and may use no other nodes than
    `allowed_addresses` (the master first). Beyond the master vLLM walks the nodes in an order of its own, so
    ranks of other nodes may come out exchanged; `gpus_by_node` is the same for every order.
    `data_parallel_size_local` is None where it is best unset: under span, and with one rank.
    `launch_order` counts from 0 over all servers of the plan: each must find what those before it have left.
    """

    topology: Topology
    ranks: tuple[RankPlacement, ...]
    master_address: str
    master_node_id: str
    data_parallel_size_local: int | None
    allowed_addresses: tuple[str, ...]
    launch_order: int

    @property
    def gpus_by_node(self) -> dict[str, int]:
        """GPUs this server takes of each node, by node id."""
        gpus: Counter[str] = Counter()
        for rank in self.ranks:
            for slot in rank.slots:
                gpus[slot.node_id] += slot.gpus
        return dict(gpus)


def plan_placements(
    cluster: Cluster, topologies: Sequence[Topology], *, tries: int = TRIES
) -> tuple[Placement, ...]:
    """A placement for each topology, in the order given. The order of the nodes makes no difference.

    Raises PlacementError: one sentence that says what was asked, what is free and what would fit instead.
    """
    nodes = usable_nodes(cluster)
    refusal.check_each(nodes, topologies)
    outcome = _place(nodes, topologies, tries)
    if not isinstance(outcome, NoRoom):
        return outcome
    notes = []
    if not outcome.complete:
        notes.append(f"the search ended after {outcome.tries:,} tries, so a plan may exist")
    if len(nodes) < len(cluster.nodes):
        notes.append(f"{len(cluster.nodes) - len(nodes)} nodes that share an address are left out")
    raise PlacementError(refusal.reason(nodes, topologies, partial(_left_after, nodes), notes))


def usable_nodes(cluster: Cluster) -> tuple[Node, ...]:
    """The nodes a plan may use. Those that share an address are left out: vLLM cannot tell them apart."""
    uses = Counter(node.address for node in cluster.nodes)
    return tuple(node for node in cluster.by_address() if uses[node.address] == 1)


def _place(
    nodes: Sequence[Node], topologies: Sequence[Topology], tries: int
) -> tuple[Placement, ...] | NoRoom:
    stock, kinds = stock_of(nodes)
    outcome = search(stock, map(shape_of, topologies), tries)
    return outcome if isinstance(outcome, NoRoom) else _on_nodes(nodes, kinds, topologies, outcome.steps)


def _left_after(nodes: Sequence[Node], topologies: Sequence[Topology]) -> tuple[Node, ...] | None:
    """The nodes with what these servers leave, or None when a short search finds no room for them."""
    outcome = _place(nodes, topologies, _TRIES_TO_EXPLAIN)
    if isinstance(outcome, NoRoom):
        return None
    gpus: Counter[str] = Counter()
    cpus: Counter[str] = Counter()
    for placement in outcome:
        gpus.update(placement.gpus_by_node)
        cpus.update(rank.slots[0].node_id for rank in placement.ranks)
    return tuple(
        replace(
            node, gpus_free=node.gpus_free - gpus[node.node_id], cpus_free=node.cpus_free - cpus[node.node_id]
        )
        for node in nodes
    )


def _on_nodes(
    nodes: Sequence[Node], kinds: Sequence[Kind], topologies: Sequence[Topology], steps: Sequence[Step]
) -> tuple[Placement, ...]:
    waiting: dict[object, list[int]] = defaultdict(list)
    for index in reversed(range(len(topologies))):
        waiting[shape_of(topologies[index])].append(index)
    shelves: dict[Kind, list[int]] = defaultdict(list)
    for index, kind in enumerate(kinds):
        shelves[kind].append(index)
    placed: dict[int, Placement] = {}
    for order, step in enumerate(steps):
        index = waiting[step.shape].pop()
        taken = [(nodes[node], gpus) for node, gpus in _pick(shelves, step.option)]
        placed[index] = _placement(topologies[index], taken, step.option.local, order)
    return tuple(placed[index] for index in range(len(topologies)))


def _pick(shelves: dict[Kind, list[int]], option: Option) -> list[tuple[int, int]]:
    """Takes the first nodes of each kind off their shelf, and puts them back with what is left on them."""
    picked: list[tuple[int, int]] = []
    returned: list[tuple[Kind, int]] = []
    for share in option.shares:
        shelf = shelves[share.kind]
        picked += [(node, share.gpus) for node in shelf[: share.nodes]]
        returned += [(share.kind.after(share.gpus, share.cpus), node) for node in shelf[: share.nodes]]
        del shelf[: share.nodes]
    for kind, node in returned:
        bisect.insort(shelves[kind], node)
    return sorted(picked) if option.any_master else [picked[0], *sorted(picked[1:])]


def _placement(
    topology: Topology, taken: Sequence[tuple[Node, int]], local: int | None, order: int
) -> Placement:
    slots = [Slot(node.node_id, node.address, gpus) for node, gpus in taken]
    together = _spanning if topology.strategy is PackStrategy.SPAN else _packed
    ranks = tuple(RankPlacement(rank, part) for rank, part in enumerate(together(slots, topology.world_size)))
    return Placement(
        topology=topology,
        ranks=ranks,
        master_address=slots[0].address,
        master_node_id=slots[0].node_id,
        data_parallel_size_local=local if topology.data_parallel_size > 1 else None,
        allowed_addresses=tuple(slot.address for slot in slots),
        launch_order=order,
    )


def _packed(slots: Sequence[Slot], world_size: int) -> list[tuple[Slot, ...]]:
    ranks = [(slot, slot.gpus // world_size) for slot in slots]
    return [(Slot(slot.node_id, slot.address, world_size),) for slot, count in ranks for _ in range(count)]


def _spanning(slots: Sequence[Slot], world_size: int) -> list[tuple[Slot, ...]]:
    nodes = world_size // slots[0].gpus
    return [tuple(slots[first : first + nodes]) for first in range(0, len(slots), nodes)]
