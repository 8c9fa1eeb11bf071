"""The options of `ssh` and `slurm.sbatch`, and what their `--help` says."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]

SSH_HELP = """\
scripts/cluster/ssh --hosts HOST,HOST,... [options] [COMMAND ...]

Starts Ray on the hosts, the first of them the head, runs COMMAND there once all have joined, and ends all of
it after. COMMAND is `ng_run ...`, one of scripts/topologies, or anything else; its exit status becomes the
script's. Words that begin with + or ~ are given to ng_run, and without any ng_run serves the default model.

  scripts/cluster/ssh --hosts gpu1,gpu2 ng_run "+config_paths=[Qwen/Qwen3-4B.yaml]"
  scripts/cluster/ssh --hosts gpu1,gpu2 scripts/topologies/2-nodes-tp16-span
  scripts/cluster/ssh --hosts gpu1,gpu2 --dry-run scripts/topologies/2-nodes-tp16-span

Needs: ssh to every host without a password (keys or an agent); this repository with its .venv at the same
place on every host (a shared file system, or scripts/setup on each); no firewall between the hosts: Ray and
vLLM use many ports.
Ctrl-C stops COMMAND, waits for it, and ends Ray; a second one does not wait for requests in flight.
"""

SLURM_HELP = """\
sbatch [sbatch options] scripts/cluster/slurm.sbatch [options] [COMMAND ...]

Starts Ray on the nodes of the job, the first of them the head, runs COMMAND there once all have joined, and
ends all of it after. COMMAND is `ng_run ...`, one of scripts/topologies, or anything else; its exit status
becomes the job's. Words that begin with + or ~ are given to ng_run; without any it serves the default model.

  sbatch --nodes=2 scripts/cluster/slurm.sbatch ng_run "+config_paths=[Qwen/Qwen3-4B.yaml]"
  sbatch --nodes=2 scripts/cluster/slurm.sbatch scripts/topologies/2-nodes-tp16-span
  scripts/cluster/slurm.sbatch --nodes 2 --dry-run scripts/topologies/2-nodes-tp16-span

Needs: Slurm 20.11 or newer; this repository with its .venv on a file system that the nodes share. The #SBATCH
lines ask for whole nodes of 8 GPUs; options of sbatch override them. It works under salloc too.
To stop it: scancel --batch --signal=TERM JOB lets requests in flight end; a plain scancel does not.
"""


def arguments(kind: str, argv: Sequence[str]) -> argparse.Namespace:
    """The command line of `ssh` or `slurm`; the command's own words are in `command`."""
    parser = parser_of(kind)
    asked = parser.parse_args(argv)
    asked.command = command_of(asked.command)
    return asked


def parser_of(kind: str) -> argparse.ArgumentParser:
    """The options of the two, and the help text of each."""
    usage, *text = (SSH_HELP if kind == "ssh" else SLURM_HELP).splitlines(keepends=True)
    parser = argparse.ArgumentParser(
        prog=f"scripts/cluster/{'ssh' if kind == 'ssh' else 'slurm.sbatch'}",
        usage=usage.strip(),
        description="".join(text),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if kind == "ssh":
        parser.add_argument("--hosts", help="names or addresses, comma-separated; user@host too")
        parser.add_argument("--hostfile", type=Path, help="a file with one host a line; # begins a comment")
        parser.add_argument("--ssh", default="ssh", help="the ssh command, with options of your own")
        parser.add_argument(
            "--root", default=str(ROOT), help="where the repository is on the hosts; default: as here"
        )
    else:
        parser.add_argument(
            "--nodes", type=int, help="with --dry-run outside a job: how many nodes it would have"
        )
        parser.set_defaults(root=str(ROOT))
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands and draw the plan; starts nothing"
    )
    parser.add_argument(
        "--gpus-per-node", type=int, default=8, help="with --dry-run: GPUs of a host; default: 8"
    )
    parser.add_argument(
        "--interface", help="network interface between the hosts; default: the one of the way there"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable for the hosts"
    )
    parser.add_argument(
        "--cwd", default=os.getcwd(), help="where COMMAND runs on the head; default: this folder"
    )
    parser.add_argument(
        "--join-timeout", type=float, default=300, help="seconds for all hosts to join; default: 300"
    )
    parser.add_argument(
        "--stop-timeout",
        type=float,
        default=330,
        help="seconds for COMMAND to stop before it is made to; default: 330",
    )
    parser.add_argument("--logical-gpus", type=int, help="GPUs to pretend to have, on hosts without any")
    parser.add_argument("--keep-logs", action="store_true", help="leave Ray's logs in /tmp on each host")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run; default: ng_run"
    )
    return parser


def command_of(words: Sequence[str]) -> list[str]:
    """The command that the words mean: overrides alone are ng_run's."""
    words = list(words[1:] if words[:1] == ["--"] else words)
    return ["ng_run", *words] if not words or words[0].startswith(("+", "~")) else words
