"""Runs over several nodes, what is asked of them, and where their processes must be."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from engine_answers import WEATHER
from namespace_cluster import DEAD_PROXY, HEAD, NamespaceCluster, Node
from ng_run_process import NgRun, command_line, running, until

MODEL = "local-vllm-default"
# Twenty processes that each import vLLM share the cores of one machine.
START_DEADLINE_S = 1000
# Enough for the sessions of a question to reach each of two data-parallel ranks.
SESSIONS = 2

# What a process of an engine is, by its command line or the title that Ray gives it.
KINDS = {
    "host": re.compile(r"^ray::EngineHost"),
    "server": re.compile(r"^\S*python\S* -m vllm\.entrypoints"),
    "core": re.compile(r"EngineCore"),
    "worker": re.compile(r"RayWorkerProc"),
}


@dataclass(frozen=True)
class Question:
    """One question, as the Responses API and as vLLM itself are asked it."""

    text: str
    tools: tuple[dict, ...] = ()
    seed: int | None = None

    def for_vllm(self) -> dict[str, object]:
        tools = [{"type": "function", "function": {k: v for k, v in t.items() if k != "type"}} for t in self.tools]
        return {
            "messages": [{"role": "user", "content": self.text}],
            "tools": tools or None,
            "sampling": {"temperature": 1.0, "seed": self.seed},
        }

    def ask(self, run: NgRun, server: str, session: str) -> dict[str, list]:
        """The token ids and log probabilities of the answer."""
        answer = run.client(server).responses.create(
            model=MODEL,
            input=self.text,
            tools=list(self.tools),
            temperature=1.0,
            extra_body={"seed": self.seed} if self.seed is not None else {},
            extra_headers={"x-session-id": session},
        )
        last = answer.output[-1]
        return {
            name: getattr(last, name) for name in ("prompt_token_ids", "generation_token_ids", "generation_log_probs")
        }


QUESTIONS = {
    "text": Question("ECHO:Grüße"),
    "sampled": Question("FLIP:24", seed=7),
    "few sampled": Question("FLIP:6", seed=7),
    "thought": Question("THINK:two and two|four"),
    "tool call": Question("What is the weather in Paris?", (WEATHER,)),
    "long": Question("REPEAT:40"),
}


@dataclass(frozen=True)
class Engine:
    """The topology of one server, and the GPUs that it takes of each of its nodes."""

    dp: int
    tp: int
    pp: int
    strategy: str
    gpus_of_nodes: tuple[int, ...]

    def config(self) -> dict:
        settings = {
            "model": MODEL,
            "return_token_id_information": True,
            "vllm_serve_env_vars": {"VLLM_RAY_DP_PACK_STRATEGY": self.strategy},
            "vllm_serve_kwargs": {
                "data_parallel_size": self.dp,
                "tensor_parallel_size": self.tp,
                "pipeline_parallel_size": self.pp,
                "max_model_len": 8192,
                "max_num_seqs": 16,
                "dtype": "float32",
                "enable_auto_tool_choice": True,
                "tool_call_parser": "hermes",
                "reasoning_parser": "qwen3",
            },
        }
        return {"responses_api_models": {"local_vllm_model": settings}}


@dataclass(frozen=True)
class SeveralNodes:
    """A run that was started on a head node without GPUs, and its engines on the other nodes.

    `http_host` is None for a run that has the default: only processes on the head node reach it.
    """

    cluster: NamespaceCluster
    run: NgRun
    engines: Mapping[str, Engine]
    http_host: str | None
    record: dict = field(repr=False)

    def check(self, what: Callable[..., None], *arguments: object) -> None:
        """Call a check where the run can be reached."""
        if self.http_host is None:
            self.cluster.head.call(what, self, *arguments)
        else:
            what(self, *arguments)

    def placed(self, server: str) -> list[list[tuple[str, int]]]:
        """The address and GPUs of each slot of each data-parallel rank, as the run's record has them."""
        (found,) = [entry for entry in self.record["servers"] if entry["name"] == server]
        return [[(slot["address"], slot["gpus"]) for slot in rank["slots"]] for rank in found["placement"]["ranks"]]

    def engine_url(self, server: str) -> str:
        with urlopen(f"{self.run.url}/{server}/get_inner_vllm_config", timeout=20) as answer:
            (url,) = json.load(answer)["base_url"]
        return url


@contextmanager
def several_nodes(
    cluster: NamespaceCluster, folder: Path, engines: Mapping[str, Engine], http_host: str | None
) -> Iterator[SeveralNodes]:
    """Start `ng_run` on the head node; with an `http_host` it is reached from this machine, as from another one."""
    config = {name: engine.config() for name, engine in engines.items()}
    (folder / "engines.yaml").write_text(json.dumps(config))
    head = cluster.head
    words = ["+config_paths=[engines.yaml]", f"+ray_address={cluster.ray_address}"]
    more: dict = {"prefix": head.prefix, "environment": cluster.environment}
    if http_host is not None:
        words += [f"++http_host={http_host}", "++allow_unauthenticated=true"]
        more["host"] = head.address
    with running(folder, *words, deadline_s=START_DEADLINE_S, **more) as run:
        yield SeveralNodes(cluster, run, engines, http_host, run.record())


def check_answers(nodes: SeveralNodes, expected: Mapping[str, dict], names: Iterable[str] = QUESTIONS) -> None:
    """Every server gives the tokens that one process gives, whichever data-parallel rank a session is on."""
    for server, engine in nodes.engines.items():
        for name in names:
            for session in range(SESSIONS if engine.dp > 1 else 1):
                answer = QUESTIONS[name].ask(nodes.run, server, f"{name}-{session}")
                case = f"{server}, {name}, session {session}"
                assert answer["prompt_token_ids"] == expected[name]["prompt_token_ids"], case
                assert answer["generation_token_ids"] == expected[name]["generation_token_ids"], case
                wanted = expected[name]["generation_log_probs"]
                assert answer["generation_log_probs"] == pytest.approx(wanted, abs=1e-4), case


def check_ranks_worked(nodes: SeveralNodes) -> None:
    """Every data-parallel rank has generated something."""
    for server, engine in nodes.engines.items():
        with urlopen(f"{nodes.engine_url(server).removesuffix('/v1')}/metrics", timeout=20) as answer:
            metrics = answer.read().decode()
        generated = re.findall(r'^vllm:generation_tokens_total\{.*?engine="(\d+)".*?\} (\S+)$', metrics, re.MULTILINE)
        assert {int(rank) for rank, tokens in generated if float(tokens) > 0} == set(range(engine.dp)), server


def check_placement(nodes: SeveralNodes) -> None:
    """Every process of every engine is on the node that the plan says, and each engine on its own nodes.

    There is an engine core for each rank. It needs no GPU, and Ray may put it on any node.
    """
    cores = 0
    expected: dict[str, Counter[str]] = {node.address: Counter() for node in nodes.cluster.nodes.values()}
    for server, engine in nodes.engines.items():
        ranks = nodes.placed(server)
        gpus: Counter[str] = Counter()
        for rank in ranks:
            cores += 1
            for address, count in rank:
                gpus[address] += count
                expected[address]["worker"] += count
        assert sorted(gpus.values()) == sorted(engine.gpus_of_nodes), (server, gpus)
        master = ranks[0][0][0]
        expected[master].update(["host", "server"])
        assert nodes.engine_url(server).startswith(f"http://{master}:"), server
    # A process that is just being started has its parent's name.
    assert until(lambda: kinds_by_node(nodes) == (expected, cores), 10), f"{kinds_by_node(nodes)} is not {expected}"
    assert not expected[nodes.cluster.head.address], "the head node has no GPUs"


def check_network(nodes: SeveralNodes) -> None:
    """No address that leaves a node is loopback, and gloo uses each node's own interface, whatever its name."""
    told = [nodes.engine_url(server) for server in nodes.engines]
    if nodes.http_host is not None:
        told.append(json.dumps(nodes.record))
    for text in told:
        assert "127.0.0.1" not in text and "localhost" not in text, text
    for node in nodes.cluster.nodes.values():
        processes = processes_of_engines(node)
        listening = listened_addresses(node, {process.pid for process in processes})
        assert listening <= {node.address, "*", "0.0.0.0", "[::]"}, (node.name, listening)
        for process in processes:
            assert process.environ()["http_proxy"] == DEAD_PROXY, "the proxy was there to be fallen for"


def check_replicas(nodes: SeveralNodes) -> None:
    """The replicas of a run that listens on loopback are all on the head node; the ingress always is."""
    lines = {name: list(map(_line, node.pids())) for name, node in nodes.cluster.nodes.items()}
    replicas = {name for name, found in lines.items() if any("ServeReplica" in line for line in found)}
    assert replicas
    assert nodes.http_host is not None or replicas == {HEAD}
    assert {name for name, found in lines.items() if any("bin/haproxy" in line for line in found)} == {HEAD}


def listened_addresses(node: Node, pids: set[int]) -> set[str]:
    """The addresses on which processes of a node listen."""
    sockets = [line.split() for line in node.run("ss", "-ltnpH").splitlines()]
    return {
        words[3].rpartition(":")[0] for words in sockets if pids & set(map(int, re.findall(r"pid=(\d+)", words[-1])))
    }


def processes_of_engines(node: Node) -> list[psutil.Process]:
    """The processes on a node that belong to an engine."""
    found = []
    for pid in node.pids():
        try:
            process = psutil.Process(pid)
        except psutil.NoSuchProcess:
            continue
        if kind_of(process):
            found.append(process)
    return found


def kinds_by_node(nodes: SeveralNodes) -> tuple[dict[str, Counter[str]], int]:
    """How many processes of each kind are on each node, and how many engine cores on all of them."""
    kinds = {node.address: map(kind_of, processes_of_engines(node)) for node in nodes.cluster.nodes.values()}
    found = {address: Counter(filter(None, each)) for address, each in kinds.items()}
    return found, sum(each.pop("core", 0) for each in found.values())


def kind_of(process: psutil.Process) -> str | None:
    line = command_line(process)
    return next((kind for kind, pattern in KINDS.items() if pattern.search(line)), None)


def left_on(nodes: SeveralNodes) -> list[str]:
    """What a run that is over has left on the nodes: processes, Serve's ingress, actors, GPUs that are not free."""
    cluster = nodes.cluster
    left = [f"{node.name}: {command_line(p)}" for node in cluster.nodes.values() for p in processes_of_engines(node)]
    left += [line for line in map(_line, cluster.head.pids()) if "bin/haproxy" in line]
    state = cluster.ask_ray(
        "from local_vllm.cluster.nodes import read_cluster\n"
        "print(read_cluster().gpus_free, [a['name'] for a in ray.util.list_named_actors(all_namespaces=True)])"
    )
    clean = f"{sum(node.gpus for node in cluster.nodes.values())} []"
    return left + ([state.strip()] if state.strip() != clean else [])


def _line(pid: int) -> str:
    try:
        return command_line(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return ""
