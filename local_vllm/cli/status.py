"""`ng_status`: the runs there are, their servers, engines, placement and logs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from local_vllm.errors import ClusterError
from local_vllm.runs import status
from local_vllm.runs.record import RunRecord

USAGE = """\
ng_status shows the runs on this machine: servers, state, placement, engine addresses, log files.

  ng_status                            this user's runs here, and those on the cluster of RAY_ADDRESS
  ng_status +ray_address=10.0.0.1:6379 those on this cluster as well
  ng_status --json                     the same for programs

A run is starting, healthy, degraded (some of its engines have ended), failed, stopping, or killed: its
process is gone without having cleaned up, which the next ng_run does.
Exit status: 0 done (also with no runs), 2 the command line is wrong, 1 the Ray cluster cannot be asked.
"""

@dataclass(frozen=True, slots=True)
class Asked:
    """The command line, understood."""

    ray_address: str | None
    json: bool


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    if {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    try:
        asked = _parsed(argv)
    except ValueError as error:
        print(f"ng_status: {error}", file=sys.stderr)
        return 2
    runs, failure = status.local_runs(), None
    if asked.ray_address:
        try:
            runs = status.together(runs, status.runs_on_cluster(asked.ray_address))
        except ClusterError as error:
            failure = error
    if asked.json:
        _print_json(runs)
    else:
        _print_text(runs, asked.ray_address if failure is None else None)
    if failure is not None:
        print(f"ng_status: {failure}", file=sys.stderr)
    return 1 if failure else 0


def _parsed(argv: Sequence[str]) -> Asked:
    address, as_json = os.environ.get("RAY_ADDRESS") or None, False
    for word in argv:
        key, equals, value = word.lstrip("+").partition("=")
        if word == "--json":
            as_json = True
        elif key == "ray_address" and equals and value:
            address = value
        else:
            raise ValueError(f"`{word}` means nothing here; write --json, +ray_address=host:port or --help")
    return Asked(address, as_json)


def _print_json(runs: Sequence[RunRecord]) -> None:
    print(TypeAdapter(status.StatusReport).dump_json(status.report(runs), indent=2).decode())


def _print_text(runs: Sequence[RunRecord], address: str | None) -> None:
    from rich.console import Console

    from local_vllm.runs.colours import drawing_width, painter, print_painted
    from local_vllm.runs.status_text import status_text

    console = Console(highlight=False, markup=False)
    if not runs:
        where = f"this machine or on the cluster at {address}" if address else "this machine"
        console.print(f"No runs on {where}; ng_run starts one.", soft_wrap=True)
    for number, record in enumerate(runs):
        text = status_text(record, drawing_width(console), painter(console))
        print_painted(console, f"\n\n{text}" if number else text)


if __name__ == "__main__":
    main()
