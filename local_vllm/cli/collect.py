"""`ng_collect_rollouts`: roll the rows of a JSONL file out through an agent, one line of output for each rollout."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from local_vllm.cli.failures import told
from local_vllm.config.compose import load_run_config
from local_vllm.config.files import QUICKSTART
from local_vllm.config.help import global_keys_help
from local_vllm.config.lookup import FileNotFound, find_file
from local_vllm.config.nearest import did_you_mean
from local_vllm.config.schema import AGENTS, GlobalSettings, RunConfig
from local_vllm.errors import ConfigError, LocalVLLMError, Problem, RunError
from local_vllm.rollouts.collect import Asked, Collector, tally_to_begin_with
from local_vllm.rollouts.files import Collection, Paths, held
from local_vllm.rollouts.rows import checked_input
from local_vllm.rollouts.summary import Summary, summary_table
from local_vllm.rollouts.tally import Tally
from local_vllm.runs.addresses import addresses_of, find_addresses, living_runs, models_behind
from local_vllm.runs.record import RunRecord
from local_vllm.runs.run import Run
from local_vllm.runs.server_records import server_records
from local_vllm.runs.signals import StopSignals

USAGE = """\
ng_collect_rollouts sends every row of a JSONL file to an agent and writes each finished rollout, with its reward, to
another JSONL file, as soon as it is done.

  ng_collect_rollouts +agent_name=simple_weather_simple_agent \\
    +input_jsonl_fpath=resources_servers/simple_weather/data/example.jsonl \\
    +output_jsonl_fpath=results/weather.jsonl              on the ng_run that is running
  ng_collect_rollouts "+config_paths=[...]" +agent_name=... ...
                                                           brings the servers up itself, and takes them down after
  ng_collect_rollouts ... +limit=1000 +num_repeats=4       the first 1,000 rows, four rollouts of each
  ng_collect_rollouts ... +concurrency=200                 200 in flight at once instead of 50; num_samples_in_parallel
                                                           is the same key
  ng_collect_rollouts ... +responses_create_params.temperature=0.7
                                                           over what the rows say
  ng_collect_rollouts ... +resume_from_cache=true          goes on with an output that is not complete

A row is an object with `responses_create_params`; everything else in it is carried along. Without agent_name each
row's `agent_ref.name` decides. Beside <output> are written
  <output>.failures.jsonl     rollouts that failed for good: class, message, attempt; none of them has a reward
  <output>.summary.json       mean reward, pass@k, failures, tokens, throughput
  <output>.collection.json    what was collected from what, and the process that does it
An output that is there already is moved aside unless it is resumed. Failed rollouts are tried again by a resume.
An agent that is down pauses everything, up to 30 minutes. Ctrl-C lets what is in flight finish; a second one cuts it
off. Whatever happens, each line that is written is a whole rollout, and a resume does the others.
Exit status: 0 all done, 3 done but some rollouts failed, 2 the configuration or an input row is wrong, or what is to be
resumed is another collection, 1 stopped before the end, or anything else.
"""

CONCURRENCY = 50
SPARE_FILES = 128
LOG_WIDTH = 180


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    if {"-h", "--help"} & set(argv):
        print(USAGE, global_keys_help(), sep="\n")
        return 0
    try:
        with _signals_interrupt():
            return _collected(argv)
    except LocalVLLMError as error:
        return told("ng_collect_rollouts", error)
    except KeyboardInterrupt:
        print("ng_collect_rollouts: stopped before anything was begun", file=sys.stderr)
        return 1


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Until an event loop takes the signals over; also where SIGINT was inherited as ignored."""
    before = {sig: signal.signal(sig, signal.default_int_handler) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def _collected(argv: Sequence[str]) -> int:
    config = load_run_config(argv, cwd=Path.cwd())
    source, output = _paths(config.settings, Path.cwd())
    _allow_files(_concurrency(config.settings))
    console = _console()
    for notice in config.notices:
        console.print(f"Note: {notice}", soft_wrap=True)
    with held(Paths(output)) as collection:
        if _brings_servers_up(config, argv):
            return _with_own_servers(config, source, collection, console)
        return _with_running_servers(config.settings, source, collection, console)


def _with_running_servers(settings: GlobalSettings, source: Path, collection: Collection, console: Console) -> int:
    asked = _asked(settings, source, collection)
    addresses = find_addresses(settings)
    for agent in sorted(asked.rows.agents):
        addresses.check_agent(agent)
    asked = replace(asked, models=addresses.models_of(asked.rows.agents))
    tally = _tally(asked, settings, collection, console)
    collector = Collector(asked, collection, tally, console)
    summary = asyncio.run(_until_done_or_signalled(collector.collect(addresses.url_of, addresses.key_of)))
    return _ended(summary, collection, console)


async def _until_done_or_signalled(collect: Coroutine[None, None, Summary]) -> Summary | None:
    """None when a signal came before the first rollout."""
    collecting = asyncio.create_task(collect)
    StopSignals(first=collecting.cancel, second=collecting.cancel).install()
    await asyncio.wait([collecting])
    return None if collecting.cancelled() else collecting.result()


def _with_own_servers(config: RunConfig, source: Path, collection: Collection, console: Console) -> int:
    asked = _asked(config.settings, source, collection)
    _check_agents(config, asked.rows.agents)
    asked = replace(asked, models=models_behind(server_records(config, []), asked.rows.agents))
    tally = _tally(asked, config.settings, collection, console)
    summary: Summary | None = None

    async def collect(run: RunRecord) -> None:
        nonlocal summary
        there = addresses_of(run)
        summary = await Collector(asked, collection, tally, console).collect(there.url_of, there.key_of)

    asyncio.run(Run(config, console).do(collect))
    return _ended(summary, collection, console)


def _ended(summary: Summary | None, collection: Collection, console: Console) -> int:
    """Say how it ended; the exit status."""
    again = "the same command with +resume_from_cache=true"
    if summary is None:
        console.print("Stopped before the first rollout.")
        return 1
    console.print(summary_table(summary))
    console.print(f"Rollouts: {collection.paths.output}", soft_wrap=True)
    if summary.failed:
        console.print(f"Failures: {collection.paths.failures}; {again} tries them again.", soft_wrap=True)
    if not summary.is_complete:
        console.print(f"{summary.not_begun:,} rollouts are not done yet; {again} goes on.", soft_wrap=True)
        return 1
    return 3 if summary.failed else 0


# What is asked


def _paths(settings: GlobalSettings, cwd: Path) -> tuple[Path, Path]:
    """Where the rows are, and where rollouts go."""
    problems: list[Problem] = []
    if settings.dry_run:
        problems.append(Problem("dry_run", "is for ng_run: give it the same config_paths to see the plan"))
    source = None
    if settings.input_jsonl_fpath is None:
        problems.append(Problem("input_jsonl_fpath", "must be given: the JSONL file with the rows to roll out"))
    else:
        try:
            source = find_file(settings.input_jsonl_fpath, (cwd,))
        except FileNotFound as error:
            problems.append(Problem("input_jsonl_fpath", str(error)))
    if settings.output_jsonl_fpath is None:
        problems.append(Problem("output_jsonl_fpath", "must be given: the JSONL file that finished rollouts go to"))
    output = (cwd / Path(settings.output_jsonl_fpath or "-").expanduser()).resolve()
    if source == output:
        problems.append(Problem("output_jsonl_fpath", f"is the input, {source}: name another file"))
    elif output.is_dir():
        problems.append(Problem("output_jsonl_fpath", f"{output} is a folder: name a file in it"))
    if problems or source is None:
        raise ConfigError(problems)
    return source, output


def _asked(settings: GlobalSettings, source: Path, collection: Collection) -> Asked:
    """The collection, its rows read once; reading many takes seconds, so it comes after the lock."""
    resumes = settings.resume_from_cache and collection.identity is not None
    rows = checked_input(
        source,
        limit=settings.limit,
        agent=settings.agent_name,
        earlier_rows=collection.identity.rows if resumes else 0,
        params=settings.responses_create_params,
    )
    return Asked(
        rows, settings.agent_name, settings.num_repeats, _concurrency(settings), settings.responses_create_params
    )


def _tally(asked: Asked, settings: GlobalSettings, collection: Collection, console: Console) -> Tally:
    def tell(sentence: str) -> None:
        console.print(sentence, soft_wrap=True)

    tally = tally_to_begin_with(asked, collection, settings.resume_from_cache, tell)
    if tally.done.count:
        tell(f"Going on: {tally.done.count:,} of {tally.total:,} rollouts are done already.")
    return tally


def _concurrency(settings: GlobalSettings) -> int:
    return settings.num_samples_in_parallel or CONCURRENCY


def _brings_servers_up(config: RunConfig, argv: Sequence[str]) -> bool:
    """Whether config files were asked for here; those of env.yaml are for when nothing runs."""
    keys = {word.lstrip("+").partition("=")[0] for word in argv}
    if keys & {"config_paths", "model"}:
        return True
    if config.settings.config_paths == (QUICKSTART,) or keys & {"http_host", "http_port", "ray_address"}:
        return False
    return not living_runs()


def _check_agents(config: RunConfig, agents: frozenset[str]) -> None:
    known = [server.name for server in config.servers if server.kind == AGENTS]
    there = f"; there are {', '.join(known)}" if known else "; they have none"
    problems = [
        Problem("agent_name", f"`{agent}` is no agent of these config files{did_you_mean(agent, known)}{there}")
        for agent in sorted(agents - set(known))
    ]
    if problems:
        raise ConfigError(problems)


def _allow_files(concurrency: int) -> None:
    """Each rollout in flight has a connection, which counts as an open file. Raises RunError when they are too many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = concurrency + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise RunError(
                f"num_samples_in_parallel is {concurrency}, and this process may have {hard} files open: "
                f"set {max(1, hard - SPARE_FILES)} at most, or raise `ulimit -n`"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Console(Console):
    """Goes on in silence when nobody reads it any more: `| tee log` ends with the same Ctrl-C that asks for a grace."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())


def _console() -> Console:
    # A log file has no width of its own, and a table folded to 80 columns cannot be read.
    return _Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else LOG_WIDTH)


if __name__ == "__main__":
    main()
