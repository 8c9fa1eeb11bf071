"""A collection from its first rollout to its summary: bounded concurrency, retries, pauses, and a clean stop.

Cancelling the task that runs `collect` stops it: once lets what is in flight finish, twice cuts that off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich.console import Console

from local_vllm.errors import RunError
from local_vllm.rollouts import earlier, outage
from local_vllm.rollouts.agents import Agents, Answered
from local_vllm.rollouts.failures import Failed, Failure, RetryBudget, wait_before_next_s
from local_vllm.rollouts.files import Collection, Lines
from local_vllm.rollouts.identity import Identity
from local_vllm.rollouts.outage import Outage, Verdict, stopped_within
from local_vllm.rollouts.progress import Progress
from local_vllm.rollouts.results import Engine, Stamps, failure_line, output_line
from local_vllm.rollouts.rows import NO_ROW, Input, Row, agent_row, lines
from local_vllm.rollouts.summary import Session, Summary, keep_summary, summarized
from local_vllm.rollouts.tally import Done, Tally

GRACE_S = 300.0
BUDGET_AT_LEAST = 100


@dataclass(frozen=True, slots=True)
class Asked:
    """What to collect; checked, and with its input read once."""

    rows: Input
    agent_name: str | None
    num_repeats: int
    concurrency: int
    responses_create_params: Mapping[str, Any]
    models: tuple[str, ...] = ()

    @property
    def identity(self) -> Identity:
        return Identity(
            str(self.rows.path), self.rows.rows, self.rows.digest, self.num_repeats, self.agent_name,
            dict(self.responses_create_params), self.models,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long is waited for an agent that is down, and for rollouts in flight when stopped."""

    outage_s: float = outage.DEADLINE_S
    grace_s: float = GRACE_S


class Rollout(NamedTuple):
    task: int
    number: int
    row: Row


def tally_to_begin_with(asked: Asked, collection: Collection, resume: bool, tell: Callable[[str], None]) -> Tally:
    """What is done already: nothing, unless there is an output to go on with.

    Raises ConfigError when there is one that this collection cannot go on with.
    """
    if not (resume and collection.has_output):
        return Tally(Done(asked.rows.rows, asked.num_repeats))
    earlier.check_resumable(collection, asked.identity, asked.rows)
    return earlier.tally_of(collection.paths.output, asked.rows.rows, asked.num_repeats, tell)


class Collector:
    """Collects what is missing in a tally into the files of a collection."""

    def __init__(
        self,
        asked: Asked,
        collection: Collection,
        tally: Tally,
        console: Console,
        deadlines: Deadlines = Deadlines(),
    ) -> None:
        self._asked = asked
        self._collection = collection
        self._tally = tally
        self._console = console
        self._deadlines = deadlines
        self._budget = RetryBudget(max(BUDGET_AT_LEAST, asked.concurrency))
        self._rollouts = self._missing()
        self._stopping = asyncio.Event()
        self._broken: Exception | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._done_before, self._tokens_before = tally.done.count, tally.output_tokens
        self._begun_at, self._begun = time.time(), time.monotonic()
        self._failures: Lines | None = None

    async def collect(
        self, url_of: Callable[[str], str], key_of: Callable[[str], str | None] = lambda agent: None
    ) -> Summary:
        """Roll out what is missing; `url_of` an agent's name is where it answers, `key_of` what it asks for.

        Raises RunError when an agent is not there at all, or the output cannot be written any more.
        """
        async with Agents(url_of, self._asked.concurrency, key_of=key_of) as self._agents:
            self._outage = Outage(self._agents.absence, self._stopping, self._tell, self._deadlines.outage_s)
            with ExitStack() as stack:
                stack.callback(self._outage.close)
                await self._check_agents()
                self._begin(stack)
                async with Progress(self._console, self._tally, lambda: self._outage.agent).shown():
                    await self._work_until_done_or_stopped()
        summary = self._summary()
        if self._broken is not None:
            with suppress(RunError):
                keep_summary(summary, self._collection.paths)
            raise self._broken
        keep_summary(summary, self._collection.paths)
        return summary

    def _begin(self, stack: ExitStack) -> None:
        """The files, ready to be added to."""
        paths = self._collection.paths
        if not self._done_before and (aside := self._collection.move_aside()):
            self._tell(f"{paths.output} was there already; it is now {aside.output}.")
        self._collection.keep_identity(self._asked.identity)
        self._collection.remove_stale()
        self._output = stack.enter_context(closing(Lines(paths.output)))
        stack.callback(lambda: self._failures and self._failures.close())

    async def _check_agents(self) -> None:
        for agent in sorted(self._asked.rows.agents):
            failed = await self._agents.absence(agent)
            if failed is None:
                continue
            if failed.failure is Failure.NO_CONNECTION:
                raise RunError(f"{failed.message}; is ng_run up, and is this where it answers?")
            if failed.failure is Failure.REJECTED:
                raise RunError(f"there is no agent `{agent}` where it was looked for: {failed.message}")
            if await self._outage.looked_into(agent) is Verdict.STAYED_DOWN:
                raise RunError(f"{agent} cannot answer: {failed.message}")

    def _missing(self) -> Iterator[Rollout]:
        """What is not done, all rollouts of a row next to each other."""
        asked, done = self._asked, self._tally.done
        for task, line in enumerate(lines(asked.rows.path, asked.rows.rows)):
            if missing := done.missing(task):
                try:
                    row = agent_row(line, asked.agent_name, asked.responses_create_params)
                except NO_ROW as error:
                    raise RunError(f"{asked.rows.path}: row {task} has changed since the start: {error}") from error
                yield from (Rollout(task, number, row) for number in missing)

    # Workers

    async def _work_until_done_or_stopped(self) -> None:
        wanted = min(self._asked.concurrency, self._tally.total - self._tally.done.count)
        workers = self._workers = [asyncio.create_task(self._work()) for _ in range(wanted)]
        if not workers:
            return
        try:
            await self._until_ended(workers)
        except asyncio.CancelledError:
            await self._stop(workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)

    async def _until_ended(self, workers: list[asyncio.Task[None]]) -> None:
        """Until all have ended. Where an agent stayed down, what is in flight has its grace."""
        ended, stopping = asyncio.ensure_future(asyncio.wait(workers)), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
            if self._broken is None and self._tally.in_flight:
                self._tell(f"Stopping: {self._in_flight_and_grace()}.")
            await asyncio.wait((ended,), timeout=self._deadlines.grace_s)
        finally:
            ended.cancel()
            stopping.cancel()

    def _in_flight_and_grace(self) -> str:
        return f"{self._tally.in_flight} rollouts in flight get up to {self._deadlines.grace_s:.0f} s"

    async def _stop(self, workers: list[asyncio.Task[None]]) -> None:
        """Nothing new; what is in flight may finish, until the grace is over or a second cancellation."""
        self._stopping.set()
        self._tell(f"Stopping: {self._in_flight_and_grace()}; Ctrl-C again cuts them off.")
        try:
            await asyncio.wait(workers, timeout=self._deadlines.grace_s)
        except asyncio.CancelledError:
            self._tell(f"Cut off: {self._tally.in_flight} rollouts in flight.")

    async def _work(self) -> None:
        try:
            while await self._may_go_on() and (rollout := next(self._rollouts, None)):
                await self._roll_out(rollout)
        # One that is no RunError is a bug, and must not pass for an end of the rows.
        except Exception as error:
            self._broken = self._broken or error
            self._stopping.set()
            # What the others would bring could not be kept.
            for worker in self._workers:
                if worker is not asyncio.current_task():
                    worker.cancel()

    async def _may_go_on(self) -> bool:
        await self._outage.over()
        return not self._stopping.is_set()

    async def _roll_out(self, rollout: Rollout) -> None:
        """Until it is done, has failed for good, or the collection is being stopped."""
        attempt = 1
        while True:
            outcome = await self._attempt(rollout)
            if isinstance(outcome, Answered):
                return self._keep(rollout, outcome, attempt)
            verdict = await self._absence_verdict(rollout, outcome)
            if verdict is Verdict.STAYED_DOWN:
                self._stopping.set()
                return self._give_up(rollout, Failed(Failure.ENGINE_DOWN, outcome.message, outcome.status), attempt)
            if verdict is Verdict.IS_BACK and outcome.had_not_begun:
                continue
            if verdict is Verdict.STOPPED:
                return None
            if reason := await self._agents.refusal_of_all(rollout.row.agent, outcome):
                raise RunError(reason)
            wait_s = wait_before_next_s(outcome, attempt)
            if wait_s is None or not self._budget.take(outcome.failure):
                return self._give_up(rollout, outcome, attempt)
            if await stopped_within(self._stopping, wait_s):
                return None
            self._tally.retries[outcome.failure] += 1
            attempt += 1

    async def _attempt(self, rollout: Rollout) -> Answered | Failed:
        self._tally.in_flight += 1
        try:
            return await self._agents.run(rollout.row.agent, rollout.row.body)
        finally:
            self._tally.in_flight -= 1

    async def _absence_verdict(self, rollout: Rollout, failed: Failed) -> Verdict:
        if not failed.may_be_absence:
            return Verdict.WAS_UP
        return await self._outage.looked_into(rollout.row.agent)

    # Results

    def _keep(self, rollout: Rollout, answered: Answered, attempt: int) -> None:
        answer, agent = answered.rollout, rollout.row.agent
        engine = Engine(agent, answered.model_server)
        stamps = Stamps(rollout.task, rollout.number, attempt, answered.timings, answer.tokens, engine)
        self._output.add(output_line(answer, rollout.row.fields, stamps))
        self._tally.finished(rollout.task, rollout.number, agent, answer.reward, answer.tokens)
        self._budget.earn()

    def _give_up(self, rollout: Rollout, failed: Failed, attempt: int) -> None:
        if self._failures is None:
            self._failures = Lines(self._collection.paths.failures)
        entry = {
            "_ng_task_index": rollout.task,
            "_ng_rollout_index": rollout.number,
            "_ng_attempt": attempt,
            "class": failed.failure.value,
            "status": failed.status,
            "message": failed.message,
            "agent": rollout.row.agent,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._failures.add(failure_line(entry))
        self._tally.failures[failed.failure] += 1

    def _summary(self) -> Summary:
        session = Session(
            begun_at=self._begun_at,
            elapsed_s=time.monotonic() - self._begun,
            paused_s=self._outage.paused_s,
            done=self._tally.done.count - self._done_before,
            output_tokens=self._tally.output_tokens - self._tokens_before,
        )
        return summarized(self._tally, session)

    def _tell(self, sentence: str) -> None:
        self._console.print(sentence, soft_wrap=True)
