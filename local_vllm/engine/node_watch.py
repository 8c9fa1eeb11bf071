"""Watches an engine's processes on one node: in the engine's host for its own node, in a Ray actor on each other.

Which processes there are is settled once, when the engine has come up. What a look means is supervise.py's.
"""

from __future__ import annotations

import time
from pathlib import Path

from local_vllm.processes import members
from local_vllm.processes.members import Member, Seen

# The title of a Ray actor's process begins so.
RAY_ACTOR = "ray::"
# How long vLLM may take to end after one of its actors has.
GOES_ON_S = 20.0


class NodeWatch:
    """The members that enlisted themselves in `folder`, on the node where this object is.

    Args:
        settled: those that another such object had settled on.
    """

    def __init__(self, folder: Path, settled: tuple[Member, ...] = ()) -> None:
        self._folder = folder
        self._members = settled
        self._starting: dict[Member, float | None] = {}

    def lost_while_starting(self) -> Member | None:
        """One of vLLM's Ray actors that came up here and has been gone for a while, though its engine goes on starting.

        Other processes come and go while an engine starts. One that fails ends its actors too, but ends soon after.
        """
        for member in members.members(self._folder):
            if member.name.startswith(RAY_ACTOR):
                self._starting.setdefault(member, None)
        now = time.monotonic()
        for seen in members.look(self._starting):
            if not seen.is_gone:
                continue
            since = self._starting[seen.member] = self._starting[seen.member] or now
            if now - since > GOES_ON_S:
                return seen.member
        return None

    def settle(self) -> tuple[Member, ...]:
        """From now on these are watched: whoever lives now, and not what served the start alone."""
        self._members = tuple(each for each in members.members(self._folder) if each.name != members.HELPER)
        members.note_shared_memory(self._folder, self._members)
        return self._members

    def look(self) -> tuple[Seen, ...]:
        return members.look(self._members)

    def end(self) -> None:
        """End every member on this node, and remove what they leave."""
        members.end(self._folder, self._members)

    def end_earlier(self) -> None:
        """The same for what an earlier launch of this engine has left here."""
        members.end_earlier(self._folder)
