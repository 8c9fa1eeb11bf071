"""Watches an engine's processes on one node: in the engine's host for its own node, in a Ray actor on each other.

Which processes there are is settled once, when the engine has come up. What a look means is supervise.py's.
"""

from __future__ import annotations

from pathlib import Path

from local_vllm.processes import members
from local_vllm.processes.members import Member, Seen
from local_vllm.processes.tree import remove_shared_memory


class NodeWatch:
    """The members that enlisted themselves in `folder`, on the node where this object is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._members: tuple[Member, ...] = ()
        self._segments: set[str] = set()

    def settle(self) -> tuple[Member, ...]:
        """From now on these are watched: whoever lives now, and not what served the start alone."""
        self._members = members.members(self._folder)
        self._segments = members.shared_memory_of(self._members)
        return self._members

    def look(self) -> tuple[Seen, ...]:
        return members.look(self._members)

    def end(self) -> None:
        """End every member on this node, and remove what they leave."""
        members.end(self._folder, self._members)
        remove_shared_memory(self._segments)

    def end_earlier(self) -> None:
        """The same for what an earlier launch of this engine has left here."""
        members.end_earlier(self._folder)
