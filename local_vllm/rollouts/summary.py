"""The end of a collection in numbers: as JSON beside the output, and as a table."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter
from rich.table import Table

from local_vllm.rollouts.disk import writing
from local_vllm.rollouts.files import Paths
from local_vllm.rollouts.tally import Tally

VERSION = 1


@dataclass(frozen=True, slots=True)
class Session:
    """What this process did: an output may have been collected by several."""

    begun_at: float
    elapsed_s: float
    paused_s: float
    done: int
    output_tokens: int

    @property
    def rollouts_per_min(self) -> float:
        return 60 * self.done / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        return self.output_tokens / self.elapsed_s if self.elapsed_s else 0.0


@dataclass(frozen=True, slots=True)
class AgentSummary:
    """One agent's share."""

    done: int
    mean_reward: float | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Over all rollouts that are done."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """`begun_at` is seconds since 1970; `elapsed_s` includes `paused_s`. Rates are over all of it."""

    begun_at: float
    elapsed_s: float
    paused_s: float
    done: int
    rollouts_per_min: float
    output_tokens_per_s: float
    retries: dict[str, int]


@dataclass(frozen=True, slots=True)
class Summary:
    """What `<output>.summary.json` says. `version` changes when a field changes its meaning or goes.

    Attributes:
        rollouts: wanted; done, failed and not_begun add up to it.
        mean_reward: of those done; a failed rollout is none of them. null when there are none.
        pass_at_k: with num_repeats > 1: k -> pass@k, where a reward of 1 or more is a pass.
        failures: class -> how many of this session's rollouts failed for good.
    """

    version: int
    rows: int
    num_repeats: int
    rollouts: int
    done: int
    failed: int
    not_begun: int
    mean_reward: float | None
    pass_at_k: dict[int, float]
    failures: dict[str, int]
    tokens: Tokens
    agents: dict[str, AgentSummary]
    session: SessionSummary

    @property
    def is_complete(self) -> bool:
        """Every rollout is done or has failed."""
        return self.not_begun == 0


_SUMMARY = TypeAdapter(Summary)


def summarized(tally: Tally, session: Session) -> Summary:
    """The numbers of a tally."""
    done = tally.done
    return Summary(
        version=VERSION,
        rows=done.tasks,
        num_repeats=done.repeats,
        rollouts=tally.total,
        done=done.count,
        failed=tally.failed,
        not_begun=tally.not_begun,
        mean_reward=tally.rewards.value,
        pass_at_k=done.pass_at_k(),
        failures={failure.value: count for failure, count in tally.failures.most_common()},
        tokens=Tokens(tally.input_tokens, tally.output_tokens),
        agents={name: AgentSummary(mean.count, mean.value) for name, mean in sorted(tally.by_agent.items())},
        session=SessionSummary(
            begun_at=session.begun_at,
            elapsed_s=round(session.elapsed_s, 3),
            paused_s=round(session.paused_s, 3),
            done=session.done,
            rollouts_per_min=round(session.rollouts_per_min, 2),
            output_tokens_per_s=round(session.output_tokens_per_s, 2),
            retries={failure.value: count for failure, count in tally.retries.most_common()},
        ),
    )


def keep_summary(summary: Summary, paths: Paths) -> None:
    """Write it whole or not at all. Raises RunError when it cannot be written."""
    new = paths.summary.with_suffix(".new")
    with writing(paths.summary):
        new.write_bytes(_SUMMARY.dump_json(summary, indent=1) + b"\n")
        new.replace(paths.summary)


def summary_table(summary: Summary) -> Table:
    """The same for people."""
    table = Table(show_header=False)
    table.add_row("rollouts", _counts(summary))
    table.add_row("mean reward", _number(summary.mean_reward))
    if len(summary.agents) > 1:
        for name, agent in summary.agents.items():
            table.add_row(f"  {name}", f"{_number(agent.mean_reward)} over {agent.done:,}")
    for k, value in summary.pass_at_k.items():
        table.add_row(f"pass@{k}", _number(value))
    for failure, count in summary.failures.items():
        table.add_row(f"failed: {failure}", f"{count:,}")
    for failure, count in summary.session.retries.items():
        table.add_row(f"tried again: {failure}", f"{count:,}")
    table.add_row("tokens", f"{summary.tokens.input:,} in, {summary.tokens.output:,} out")
    table.add_row("this session", _session(summary.session))
    return table


def _counts(summary: Summary) -> str:
    words = [f"{summary.done:,} of {summary.rollouts:,} done"]
    if summary.failed:
        words.append(f"{summary.failed:,} failed")
    if summary.not_begun:
        words.append(f"{summary.not_begun:,} not done yet")
    return ", ".join(words)


def _session(session: SessionSummary) -> str:
    paused = f" ({session.paused_s:,.0f} s of them paused)" if session.paused_s else ""
    return (
        f"{session.done:,} in {session.elapsed_s:,.1f} s{paused}: {session.rollouts_per_min:,.0f} rollouts/min, "
        f"{session.output_tokens_per_s:,.0f} generated tokens/s"
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
