"""A cluster described by hand, for a dry run: `4x8`, or its nodes one by one.

What a plan makes of it is left to runs/pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from local_vllm.config.fields import Number, PositiveInt, Settings, no_bool

MOST_NODES = 10_000
MOST_GPUS = 1_000
_SHAPE = re.compile(r"\s*\d+\s*[xX]\s*\d+\s*(\+\s*\d+\s*[xX]\s*\d+\s*)*")
_FORMS = "write nodes x GPUs, as 4x8 or 1x0+4x8, a list of nodes, or the path of a YAML file with such a list"

Count = Annotated[Number, Field(ge=0)]
Cpus = Annotated[float, BeforeValidator(no_bool), Field(ge=0)]


class DescribedNodes(Settings):
    """One node, or `count` nodes that are alike."""

    count: Annotated[PositiveInt, Field(le=MOST_NODES)] = Field(1, description="How many are like this.")
    address: str | None = Field(
        None, description="Its address; a number is added where count is more. name is the same key."
    )
    gpus: Annotated[Count, Field(le=MOST_GPUS)] = Field(description="GPUs that it has.")
    gpus_free: Count | None = Field(None, description="How many of them are free; default: all.")
    cpus: Cpus | None = Field(None, description="CPUs that it has; default: enough.")
    cpus_free: Cpus | None = Field(None, description="How many of them are free; default: all.")
    accelerator: str | None = Field(None, description="What its GPUs are, such as H100.")
    labels: dict[str, str] = Field({}, description="Labels as Ray has them.")

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "name" not in value:
            return value
        if "address" in value:
            raise ValueError("has a name and an address, which are the same key: keep one")
        return {"address" if key == "name" else key: item for key, item in value.items()}

    @model_validator(mode="after")
    def _no_more_free_than_there_are(self) -> Self:
        for what, there, free in (("gpus", self.gpus, self.gpus_free), ("cpus", self.cpus, self.cpus_free)):
            if there is not None and free is not None and free > there:
                raise ValueError(f"{what}_free is {free:g}, and {what} is {there:g}")
        if self.cpus is None and self.cpus_free is not None:
            raise ValueError("has cpus_free without cpus: give both, or neither for CPUs enough")
        return self


def is_shape(text: str) -> bool:
    """Whether a text is a cluster by itself, rather than the name of a file with one."""
    return _SHAPE.fullmatch(text) is not None


def described_nodes(value: Any) -> list[Any]:
    """What a user writes for `cluster`, as a list of nodes that the schema can check. Raises ValueError."""
    if isinstance(value, Mapping) and set(value) == {"nodes"}:
        value = value["nodes"]
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError(f"has no nodes; {_FORMS}")
    return [node for item in items for node in _nodes(item)]


def _nodes(item: Any) -> list[Any]:
    if isinstance(item, str) and is_shape(item):
        pairs = re.findall(r"(\d+)\D+(\d+)", item)
        return [{"count": int(count), "gpus": int(gpus)} for count, gpus in pairs]
    if isinstance(item, Mapping | DescribedNodes):
        return [item]
    missing = ", and there is no such file" if isinstance(item, str) else ""
    raise ValueError(f"`{item}` is not a cluster{missing}; {_FORMS}")


def named_apart(groups: Sequence[DescribedNodes]) -> Sequence[DescribedNodes]:
    """The same groups. Raises ValueError when they are too many nodes, or two have one address."""
    if (nodes := sum(group.count for group in groups)) > MOST_NODES:
        raise ValueError(f"has {nodes} nodes; {MOST_NODES} is the most that can be described")
    seen: set[str] = set()
    for address, _ in each_node(groups):
        if address in seen:
            raise ValueError(f"two nodes have the address {address}: vLLM could not tell them apart")
        seen.add(address)
    return groups


def each_node(groups: Sequence[DescribedNodes]) -> Iterator[tuple[str, DescribedNodes]]:
    """Every node's address and description. Those without an address are node1, node2, ... by their place."""
    place = 0
    for group in groups:
        for number in range(1, group.count + 1):
            place += 1
            named = group.address and (f"{group.address}{number}" if group.count > 1 else group.address)
            yield named or f"node{place}", group
