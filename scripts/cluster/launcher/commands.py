"""From the options to the local commands that a cluster consists of. Starts none of them."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from options import HERE, ROOT

# What of this environment concerns an engine on another host; ssh takes nothing along by itself.
TAKEN_ALONG = re.compile(
    r"(HF|HUGGING_FACE|VLLM|NCCL|GLOO|UCX)_.*|(https?|all|no)_proxy|(HTTPS?|ALL|NO)_PROXY"
)
NOT_TAKEN_ALONG = {"VLLM_HOST_IP"}
SSH_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15")

# A step shares its nodes with the others, takes all that the job has there, and is many processes: unbound.
SRUN = (
    "srun",
    "--overlap",
    "--ntasks-per-node=1",
    "--cpu-bind=none",
    "--kill-on-bad-exit=0",
    "--wait=0",
    "--export=ALL",
)
# srun would take these for sizes of its step. They are the job's, which has other nodes too.
SIZES_OF_THE_JOB = (
    "SLURM_CPUS_PER_TASK",
    "SLURM_DISTRIBUTION",
    "SLURM_GPUS",
    "SLURM_GPUS_PER_SOCKET",
    "SLURM_GPUS_PER_TASK",
    "SLURM_NPROCS",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_GPU",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_TRES_PER_TASK",
    "SRUN_CPUS_PER_TASK",
)


class LaunchError(Exception):
    """The cluster cannot be started; the message is one line."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The local commands of a cluster; each runs something on one host, or on several.

    Attributes:
        hosts: the names of all hosts, the head first.
        head, job: run on the head.
        workers: what each runs on, and the command.
        without: variables of this process that the commands must not inherit.
        environment: variables for what runs on the hosts.
    """

    hosts: tuple[str, ...]
    head: list[str]
    workers: tuple[tuple[str, list[str]], ...]
    job: list[str]
    without: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def ssh_plan(asked: argparse.Namespace) -> Plan:
    """One ssh for each host, and one more to the head.

    Raises:
        LaunchError: the hosts are not given as they must be.
    """
    hosts = host_list(asked)
    names = tuple(host.rpartition("@")[2] for host in hosts)

    def on(host: str, words: list[str]) -> list[str]:
        return [*shlex.split(asked.ssh), *SSH_OPTIONS, host, f"exec {shlex.join(words)}"]

    return Plan(
        hosts=names,
        head=on(hosts[0], member(asked, "head", names[0])),
        workers=tuple(
            (name, on(host, member(asked, "worker", name))) for host, name in zip(hosts[1:], names[1:])
        ),
        job=on(hosts[0], job(asked, len(hosts))),
        environment=taken_along() | given_variables(asked),
    )


def taken_along() -> dict[str, str]:
    """The variables of here that concern an engine there."""
    return {name: value for name, value in os.environ.items() if is_taken_along(name)}


def is_taken_along(name: str) -> bool:
    return bool(TAKEN_ALONG.fullmatch(name)) and name not in NOT_TAKEN_ALONG


def host_list(asked: argparse.Namespace) -> list[str]:
    """The hosts of --hosts and --hostfile."""
    words = (asked.hosts or "").replace(",", " ").split()
    if asked.hostfile:
        try:
            lines = asked.hostfile.read_text().splitlines()
        except OSError as error:
            raise LaunchError(f"--hostfile {asked.hostfile} cannot be read: {error.strerror}") from error
        words += [word for line in lines for word in line.partition("#")[0].split()]
    if not words:
        raise LaunchError("no hosts: give --hosts HOST,HOST,... or --hostfile FILE")
    if options := [word for word in words if word.startswith("-")]:
        raise LaunchError(f"{options[0]!r} is no host")
    if twice := sorted({word for word in words if words.count(word) > 1}):
        raise LaunchError(f"{twice[0]} is there twice: a host can be one node")
    return words


def slurm_plan(asked: argparse.Namespace) -> Plan:
    """One step for the head, one for all other nodes, one for the command.

    Raises:
        LaunchError: this is no job of Slurm's.
    """
    names = job_nodes(asked)
    others = len(names) - 1

    def on(first: int, count: int, words: list[str]) -> list[str]:
        return [*SRUN, f"--nodes={count}", f"--ntasks={count}", f"--relative={first}", *words]

    return Plan(
        hosts=names,
        head=on(0, 1, member(asked, "head")),
        workers=((",".join(names[1:]), on(1, others, member(asked, "worker"))),) if others else (),
        job=on(0, 1, job(asked, len(names))),
        without=SIZES_OF_THE_JOB,
        environment=given_variables(asked),
    )


def job_nodes(asked: argparse.Namespace) -> tuple[str, ...]:
    """The names of the job's nodes; made-up ones for a dry run outside a job."""
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if nodes is None:
        if not asked.dry_run:
            raise LaunchError("this is no job: submit it with sbatch --nodes=N, or try --dry-run")
        return tuple(f"node{number}" for number in range(1, (asked.nodes or 2) + 1))
    done = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True)
    if done.returncode != 0:
        raise LaunchError(f"scontrol does not know the nodes {nodes}: {done.stderr.strip()}")
    return tuple(done.stdout.split())


def member(asked: argparse.Namespace, role: str, name: str | None = None) -> list[str]:
    """The command that makes a host a node."""
    words = [*program(asked, "member.py"), role]
    if name:
        words.append(f"--name={name}")
    if asked.interface:
        words.append(f"--interface={asked.interface}")
    if asked.logical_gpus is not None:
        words.append(f"--logical-gpus={asked.logical_gpus}")
    return [*words, *(["--keep-logs"] if asked.keep_logs else [])]


def job(asked: argparse.Namespace, nodes: int) -> list[str]:
    """The command that runs the command."""
    times = [f"--join-timeout={asked.join_timeout:g}", f"--stop-timeout={asked.stop_timeout:g}"]
    return [*program(asked, "job.py"), f"--nodes={nodes}", *times, f"--cwd={asked.cwd}", "--", *asked.command]


def program(asked: argparse.Namespace, name: str) -> list[str]:
    """A program of this folder, as it is started on a host."""
    root = Path(asked.root)
    return [str(root / ".venv/bin/python"), str(root / HERE.relative_to(ROOT) / name)]


def given_variables(asked: argparse.Namespace) -> dict[str, str]:
    """Those of --env, with the values of here where none is given."""
    pairs = (word.partition("=") for word in asked.env)
    return {name: value if equals else os.environ.get(name, "") for name, equals, value in pairs}


def dry_run_command(asked: argparse.Namespace, nodes: int) -> list[str]:
    """The command, told to draw its plan on a cluster of such nodes and to stop."""
    program, *words = asked.command
    found = ROOT / ".venv/bin" / program
    known = str(found) if found.is_file() else shutil.which(program)
    if known is None:
        raise LaunchError(f"{program} is not there; scripts/setup makes .venv with ng_run in it")
    return [known, *words, f"+cluster={nodes}x{asked.gpus_per_node}", "+dry_run=true"]


def shown(command: Sequence[str]) -> str:
    """A command as it can be typed."""
    return shlex.join(command)
