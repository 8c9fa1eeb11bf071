"""Decides about an engine that has come up: whether it still generates, and when it may be started again. Pure.

What is seen of it comes in as one `Look` after another; carrying decisions out is left to the actor and to the run.
Time is counted in looks and not on a clock: when the watcher itself was held up, nobody else is blamed for it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

# A look stands for no more time than this, however late it came.
LONGEST_STEP_S = 1.0
# One may be stopped for a moment by somebody who looks into it with a tool.
STOPPED_S = 2.0
# A rank that nothing has proven alive for so long is asked for a token. With the configured time the lesser counts.
CANARY_AFTER_S = 10.0
CANARY_SHARE = 1 / 3
# An API server that is silent while its engine computes gets so many times the configured time.
BUSY_FACTOR = 10
# How long it has to say that its user has paused it, before a rank that owes something is given up.
PAUSE_TOLD_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class RankSeen:
    """What the engine's metrics tell of one data-parallel rank.

    `marks` changes whenever the rank makes a step, `works` says that requests run or wait there, and `sleeps` that it
    was put to sleep by its user.
    """

    marks: tuple[float, ...]
    works: bool
    sleeps: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """One look at an engine.

    Attributes:
        step_s: seconds since the look before.
        gone: members that have ended, in words.
        stopped: members in state T, in words.
        lost_nodes: addresses of nodes that Ray has given up.
        ranks: what the metrics told since the look before; None if they told nothing.
        heard: anything was heard of the API server since the look before.
        unheard: it was asked something and has not answered yet.
        computes: its processes use the CPU.
        canaries_back: ranks whose token has come.
        canaries_refused: ranks that give no tokens, such as those of a pooling model.
        paused: it says that its user has paused it.
    """

    step_s: float
    gone: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    lost_nodes: tuple[str, ...] = ()
    ranks: Mapping[int, RankSeen] | None = None
    heard: bool = False
    unheard: bool = False
    computes: bool = False
    canaries_back: frozenset[int] = frozenset()
    canaries_refused: frozenset[int] = frozenset()
    paused: bool = False


@dataclass(frozen=True, slots=True)
class RankVigil:
    """One rank: `quiet_s` without proof that it lives, `owing_s` of them while it had something to do.

    One that `refuses` is asked for no more tokens: with nothing to do it owes nothing.
    """

    marks: tuple[float, ...] | None = None
    works: bool = False
    sleeps: bool = False
    quiet_s: float = 0.0
    owing_s: float = 0.0
    canary_out: bool = False
    refuses: bool = False


@dataclass(frozen=True, slots=True)
class Vigil:
    """What is kept between looks. `silent_s` counts while the API server owes an answer, `idle_silent_s` of these
    while nothing of the engine computes. `pause_asked`: whether it is paused, since a rank began to owe for long.
    """

    ranks: tuple[RankVigil, ...]
    stopped: Mapping[str, float]
    silent_s: float = 0.0
    idle_silent_s: float = 0.0
    pause_asked: bool = False

    @staticmethod
    def begin(ranks: int) -> Vigil:
        return Vigil(tuple(RankVigil() for _ in range(ranks)), {})


@dataclass(frozen=True, slots=True)
class SendCanary:
    """Ask that rank for one token."""

    rank: int


@dataclass(frozen=True, slots=True)
class AskPaused:
    """Ask the engine whether its user has paused it: then it takes requests and serves none, and nothing shows it."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The engine is lost, or has stalled."""

    why: str
    stalled: bool = False


Action = SendCanary | AskPaused | GiveUp


def step(vigil: Vigil, look: Look, stall_timeout_s: float | None) -> tuple[Vigil, tuple[Action, ...]]:
    """The vigil after a look, and what is to be done. Nothing but what has ended counts without `stall_timeout_s`."""
    passed_s = min(max(look.step_s, 0.0), LONGEST_STEP_S)
    vigil = _after(vigil, look, passed_s)
    if why := _ended(vigil, look):
        return vigil, (GiveUp(why),)
    if stall_timeout_s is None:
        return vigil, ()
    if why := _stalled(vigil, stall_timeout_s):
        return vigil, (GiveUp(why, stalled=True),)
    after_s = min(CANARY_AFTER_S, stall_timeout_s * CANARY_SHARE)
    due = [
        rank for rank, of in enumerate(vigil.ranks) if of.quiet_s >= after_s and not of.canary_out and not of.refuses
    ]
    ranks = tuple(replace(of, canary_out=of.canary_out or rank in due) for rank, of in enumerate(vigil.ranks))
    ask_after_s = max(stall_timeout_s - PAUSE_TOLD_WITHIN_S, stall_timeout_s / 2)
    owes = any(of.owing_s >= ask_after_s for of in vigil.ranks)
    ask = (AskPaused(),) if owes and not vigil.pause_asked else ()
    return replace(vigil, ranks=ranks, pause_asked=owes), (*map(SendCanary, due), *ask)


def _after(vigil: Vigil, look: Look, passed_s: float) -> Vigil:
    silent = look.unheard and not look.heard
    return Vigil(
        ranks=tuple(
            _rank_after(of, rank, look, 0.0 if silent else passed_s)
            for rank, of in enumerate(vigil.ranks)
        ),
        stopped={name: vigil.stopped.get(name, 0.0) + passed_s for name in look.stopped},
        silent_s=vigil.silent_s + passed_s if silent else 0.0,
        idle_silent_s=vigil.idle_silent_s + passed_s if silent and not look.computes else 0.0,
        pause_asked=vigil.pause_asked,
    )


def _rank_after(of: RankVigil, rank: int, look: Look, passed_s: float) -> RankVigil:
    """While the API server is silent nothing can be told of its ranks, so no time passes for them."""
    told = (look.ranks or {}).get(rank)
    canary_back, refused = rank in look.canaries_back, rank in look.canaries_refused
    canary_out = of.canary_out and not canary_back and not refused
    stepped = told is not None and of.marks is not None and told.marks != of.marks
    marks, works, sleeps = (told.marks, told.works, told.sleeps) if told else (of.marks, of.works, of.sleeps)
    proven = canary_back or stepped or sleeps or look.paused
    quiet_s = 0.0 if proven else of.quiet_s + passed_s
    owing_s = of.owing_s + passed_s if not proven and (works or canary_out) else 0.0
    return RankVigil(marks, works, sleeps, quiet_s, owing_s, canary_out, of.refuses or refused)


def _ended(vigil: Vigil, look: Look) -> str | None:
    if look.lost_nodes:
        return f"the node {look.lost_nodes[0]} is lost"
    if look.gone:
        return f"{look.gone[0]} has ended"
    long = [name for name, seconds in vigil.stopped.items() if seconds >= STOPPED_S]
    return f"{long[0]} is stopped (state T)" if long else None


def _stalled(vigil: Vigil, stall_timeout_s: float) -> str | None:
    for rank, of in enumerate(vigil.ranks):
        # A canary is out by then. A request may have to wait for a reason of its own, such as its grammar.
        if of.owing_s >= stall_timeout_s:
            return f"rank {rank} has generated nothing for {of.owing_s:.0f} s, though it was asked to"
    if vigil.idle_silent_s >= stall_timeout_s:
        return f"its API server has not answered for {vigil.idle_silent_s:.0f} s, and nothing of it computes"
    if vigil.silent_s >= stall_timeout_s * BUSY_FACTOR:
        return f"its API server has not answered for {vigil.silent_s:.0f} s"
    return None


# ---- starting it again

HEALTHY_AGAIN_S = 300.0
FIRST_DELAY_S = 2.0
LONGEST_DELAY_S = 60.0


@dataclass(frozen=True, slots=True)
class Restarts:
    """How often an engine has been started again: `count` of `limit`, since it was last well for a while."""

    limit: int
    count: int = 0

    def after_health(self, healthy_s: float) -> Restarts:
        """Whoever was healthy for long begins to count anew."""
        return replace(self, count=0) if healthy_s >= HEALTHY_AGAIN_S else self

    def next(self) -> Restarts | None:
        """One more; None when there have been enough."""
        return replace(self, count=self.count + 1) if self.count < self.limit else None

    def delay_s(self, chance: float | None = None) -> float:
        """How long to wait before this one: the first comes at once, the others at growing, uneven distances."""
        if self.count <= 1:
            return 0.0
        uneven = 0.5 + (random.random() if chance is None else chance)
        return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (self.count - 2) * uneven)

    def __str__(self) -> str:
        return f"{self.count}/{self.limit}"
