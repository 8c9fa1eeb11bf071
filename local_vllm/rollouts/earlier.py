"""What an earlier session of a collection left: whether this one can go on with it, and what is done already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from local_vllm.errors import ConfigError, Problem
from local_vllm.rollouts.disk import reading
from local_vllm.rollouts.files import Collection, cut_torn_line
from local_vllm.rollouts.identity import Identity, differences
from local_vllm.rollouts.results import finished
from local_vllm.rollouts.rows import NO_ROW, Input
from local_vllm.rollouts.tally import Done, Tally

ANOTHER_WAY = "give another output_jsonl_fpath, or leave resume_from_cache out to move the output aside and start anew"


def check_resumable(collection: Collection, identity: Identity, rows: Input) -> None:
    """Raises ConfigError, with every difference, when the output is of another collection than `identity`."""
    output = collection.paths.output
    then = collection.identity
    if then is None:
        message = f"{collection.paths.collection.name} does not say what {output} was collected from: {ANOTHER_WAY}"
        raise ConfigError([Problem("resume_from_cache", message)])
    found = list(differences(then, identity, rows))
    if found:
        head = f"{output} was collected from something else: {ANOTHER_WAY}"
        raise ConfigError([Problem("resume_from_cache", head), *(Problem("", line) for line in found)])


def tally_of(output: Path, tasks: int, repeats: int, tell: Callable[[str], None]) -> Tally:
    """What stands in the output, in memory of one bit a rollout. Its last line is cut when it is torn.

    Raises ConfigError with the number of a line that is no rollout of this collection.
    """
    tally = Tally(Done(tasks, repeats))
    if torn := cut_torn_line(output):
        tell(f"{output}: the last line was torn; its {torn} bytes are cut off, and its rollout is done again.")
    twice = 0
    with reading(output), output.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, 1):
            try:
                row = finished(line)
            except NO_ROW as error:
                raise _broken(output, number, f"is no rollout: {error}") from error
            if not (0 <= row.task < tasks and 0 <= row.rollout < repeats):
                raise _broken(output, number, f"is rollout {row.rollout} of task {row.task}, which is not asked for")
            if tally.done.has(row.task, row.rollout):
                twice += 1
                continue
            tally.finished(row.task, row.rollout, row.engine.agent, row.reward, row.tokens)
    if twice:
        tell(f"{output}: {twice} lines are of rollouts that stand in it already; they are not counted again.")
    return tally


def _broken(output: Path, number: int, message: str) -> ConfigError:
    return ConfigError([Problem(f"{output}:{number}", f"{message}; take the line out, or {ANOTHER_WAY}")])
