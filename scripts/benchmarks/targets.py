"""What is measured: something that answers at a URL, and the processes that do the work for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from benchmarks.accounting import idle_rates
from benchmarks.processes import module, ng_run
from benchmarks.scenarios import Api, Scenario
from local_vllm.cluster.machine import free_ports

PASS_THROUGH, CONVERTER, WHOLE_PATH, GATEWAY, ENGINE = "pass-through", "converter", "whole path", "gateway", "engine"
PLAIN, TRAINING = "policy_model", "training_model"
# A store of responses that is full is what a server has in the long run; a small one is full soon.
STORE_MIB = 32
# Servers of configs/vllm_model.yaml and vllm_model_for_training.yaml, with the settings of these that concern speed.
CONFIG = """\
policy_model:
  responses_api_models:
    vllm_model: {{base_url: "{engine}/v1", model: stand-in, response_store_max_mib: {store_mib}}}
training_model:
  responses_api_models:
    vllm_model:
      {{base_url: "{engine}/v1", model: stand-in, return_token_id_information: true, response_store: none}}
"""


# What layer_server.py answers with, by the API that it is asked in: the last one converts so many times over.
LAYERS: Mapping[str, Api] = MappingProxyType({
    "constant": "responses", "client": "chat", "conversion": "responses", "conversions": "responses"
})
CONVERSIONS = 5


@dataclass(frozen=True, slots=True)
class Target:
    """`training_url` is asked in scenarios of training. `idle` is what its processes use without requests. `model` goes
    into requests; the default is the name of the server that is asked."""

    name: str
    api: Api
    url: str
    training_url: str
    pids: tuple[int, ...]
    idle: Counter = field(default_factory=Counter)
    model: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def asked(self, scenario: Scenario) -> tuple[str, bytes]:
        """Where to send the scenario's request, and its body."""
        url, server = (self.training_url, TRAINING) if scenario.training else (self.url, PLAIN)
        return url, scenario.body(self.api, self.model or server)


@contextmanager
def stand_in_engine(folder: Path) -> Iterator[Target]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with module("stand_in_engine", folder, port) as it:
        chat = f"{url}/v1/chat/completions"
        yield Target(ENGINE, "chat", chat, chat, (it.pid,))


def base_url(engine: Target) -> str:
    return engine.url.removesuffix("/v1/chat/completions")


@contextmanager
def pass_through(folder: Path, engine: Target) -> Iterator[Target]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    with module("pass_through", folder, port, base_url(engine)) as it:
        yield Target(PASS_THROUGH, "chat", url, url, (it.pid,))


@contextmanager
def converter(folder: Path, engine: Target) -> Iterator[Target]:
    """One process that is asked for token ids by its settings, and one that is not."""
    ports = free_ports(2)
    urls = [f"http://127.0.0.1:{port}/v1/responses" for port in ports]
    with ExitStack() as stack:
        pids = [
            stack.enter_context(module("converter_server", folder, port, base_url(engine), *more)).pid
            for port, more in zip(ports, ((), ("training",)), strict=True)
        ]
        yield Target(CONVERTER, "responses", *urls, tuple(pids))


@contextmanager
def layers(folder: Path, engine: Target) -> Iterator[list[Target]]:
    """The converter's server as far as each of its layers."""
    with ExitStack() as stack:
        found = []
        for name, api in LAYERS.items():
            (port,) = free_ports(1)
            it = stack.enter_context(module("layer_server", folder, port, base_url(engine), name))
            url = f"http://127.0.0.1:{port}/"
            found.append(Target(name, api, url, url, (it.pid,)))
        yield found


@contextmanager
def whole_path(folder: Path, engine: Target, idle_s: float) -> Iterator[list[Target]]:
    """HAProxy, Ray Serve's replicas and everything else that `ng_run` starts: a server asked at its own address, and
    the gateway."""
    (port,) = free_ports(1)
    home = folder / "ng_run"
    home.mkdir()
    (home / "models.yaml").write_text(CONFIG.format(engine=base_url(engine), store_mib=STORE_MIB))
    url = f"http://127.0.0.1:{port}"
    with ng_run(home, "+config_paths=[models.yaml]", f"++http_port={port}") as (it, _):
        addresses = [f"{url}/{name}/v1/responses" for name in (PLAIN, TRAINING)]
        server = Target(WHOLE_PATH, "responses", *addresses, (it.pid,), idle_rates([it.pid], idle_s))
        gateway = f"{url}/v1/responses"
        yield [server, replace(server, name=GATEWAY, url=gateway, training_url=gateway)]
