"""Measures what local_vllm adds to a request, and prints one table: what, its mark, what was measured, met or missed.

    scripts/bench                                  everything that needs no real engine; some minutes
    scripts/bench --engine                         real engines on the CPU as well; some twenty minutes more
    scripts/bench --only converter --rounds 1      one part, quickly
    scripts/bench --only start-up,share,direct     the parts with real engines alone
    scripts/bench --save                           adds the results as one line to scripts/bench-results.jsonl

Parts, for --only:
  whole-path   CPU per request through HAProxy, Serve's replica and model server, over that of a bare pass-through
  converter    the same for converter and engine client alone, on a bare uvicorn
  layers       a one-shot request to the converter's server as far as a constant answer, the engine client, a conversion,
               and five of them: what one adds to the one before is its price
  streaming    CPU per delta event of a stream, over forwarding its bytes
  latency      what the whole path adds to the engine's own answer, one request at a time
  rollouts     CPU per rollout of one turn through simple_agent          (alone: scripts/bench-rollouts)
  planner      the plan of 64 servers on 1,024 nodes                     (alone: scripts/bench-planner)
  start-up     ng_run until it answers, over a bare `vllm serve` with the same flags              (real engine)
  share        what of a request to a real engine is ours, of its CPU time and of its latency     (real engine)
  direct       the Responses API in the engine's API server, over its chat endpoint               (real engine)

CPU time is user and system time of all processes of the request path, per request, with 32 requests at once (8 on a
real engine). What Ray uses while idle is taken off. The engine is a stand-in that answers at once from bytes made
before, the pass-through an aiohttp server and client under uvloop. Targets are warmed up until their stores of responses
are full, then measured in turn, round by round, and medians are given; compare ratios, not times, between machines.
Answers are checked, and a line with a wrong one says FAILED. Let nothing else run meanwhile. The exit status is 1 if
something failed; to miss a mark is no failure.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from benchmarks import planner, real_engine, request_path, results, rollouts, start_up
from benchmarks.measuring import Pace
from benchmarks.processes import CannotMeasure
from benchmarks.table import Row, table

WITHOUT_ENGINE = ("whole-path", "converter", "layers", "streaming", "latency", "rollouts", "planner")
WITH_ENGINE = ("start-up", "share", "direct")


def main() -> int:
    asked = arguments()
    pace = Pace(asked.rounds, asked.seconds)
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="lvb-", dir="/tmp") as folder:
        for row in rows(asked.only, pace, Path(folder)):
            found.append(row)
            print(f"measured: {row.what}", file=sys.stderr, flush=True)
    print(table(found))
    if asked.save:
        results.save(found, pace)
    return 1 if any(row.problem for row in found) else 0


def arguments() -> argparse.Namespace:
    usual = Pace()
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=parts, help="parts with commas between them; default: all without real engines")
    parser.add_argument("--engine", action="store_true", help="the parts with real engines as well")
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="of each target in a round; %(default)s")
    parser.add_argument("--save", action="store_true", help=f"add a line to {results.FILE.name}")
    asked = parser.parse_args()
    if asked.rounds < 1 or asked.seconds <= 0:
        parser.error("--rounds is at least 1, and --seconds more than 0")
    asked.only = asked.only or [*WITHOUT_ENGINE]
    asked.only += [part for part in WITH_ENGINE if asked.engine and part not in asked.only]
    return asked


def parts(text: str) -> list[str]:
    named = text.split(",")
    for name in named:
        if name not in WITHOUT_ENGINE + WITH_ENGINE:
            raise argparse.ArgumentTypeError(f"no part {name!r}; there are {', '.join(WITHOUT_ENGINE + WITH_ENGINE)}")
    return named


def rows(asked: Collection[str], pace: Pace, folder: Path) -> Iterator[Row]:
    """The lines of the parts that are asked for. What cannot be measured is a line too, and the others go on."""
    measuring: dict[str, Callable[[], Iterator[Row]]] = {
        "request path": lambda: request_path.rows(asked, pace, folder),
        "rollouts": lambda: rollouts.rows(rollouts.Amount(rounds=pace.rounds), folder),
        "planner": planner.rows,
        "start-up": lambda: start_up.rows(pace.rounds, folder),
        "real engine": lambda: real_engine.rows(asked, pace, folder),
    }
    of_several = {"request path": request_path.PARTS, "real engine": real_engine.PARTS}
    for name, measure in measuring.items():
        if {*of_several.get(name, [name])} & {*asked}:
            try:
                yield from measure()
            except CannotMeasure as error:
                print(error, file=sys.stderr)
                yield Row(name, problem=str(error).partition("\n")[0])


if __name__ == "__main__":
    sys.exit(main())
