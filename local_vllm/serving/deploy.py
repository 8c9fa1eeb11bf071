"""From checked servers to Ray Serve applications: one for each server at `/<name>`, and the gateway at `/`.

What runs in a replica is made there, by the functions below, from settings that travel by pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from ray import serve
from ray.serve.schema import ApplicationStatusOverview

from local_vllm.cluster import machine
from local_vllm.cluster.head_node import HEAD_RESOURCE
from local_vllm.config.apps import load_app
from local_vllm.config.schema import (
    MODELS,
    ChatSettings,
    LocalVLLMModelProxySettings,
    LocalVLLMModelSettings,
    OpenAIModelSettings,
    ServerConfig,
    VLLMModelSettings,
)
from local_vllm.errors import ClusterError
from local_vllm.serving.access import Access
from local_vllm.serving.asgi import Application
from local_vllm.serving.engine_endpoints import EngineEndpoints
from local_vllm.serving.gateway import Gateway
from local_vllm.serving.local_vllm_model import LocalVLLMModel
from local_vllm.serving.local_vllm_model_proxy import LocalVLLMModelProxy
from local_vllm.serving.model_server import ModelServer
from local_vllm.serving.neighbours import Neighbours
from local_vllm.serving.openai_model import OpenAIModel
from local_vllm.serving.replica import Replica, settle_memory
from local_vllm.serving.shared_store import SharedStores, store_hosts
from local_vllm.serving.shortcut import Mounted
from local_vllm.serving.vllm_model import VLLMModel, store_setting

GATEWAY = "gateway"
# Serve's own admission control answers with texts of its own: ours stands in the application.
UNLIMITED_REQUESTS = 1_000_000
HEALTH_CHECK_PERIOD_S = 2
GRACEFUL_SHUTDOWN_S = 2
# The least that Ray counts: there is one unit, and it is for choosing the node only.
RESOURCE_SHARE = 0.0001


@dataclass(frozen=True, slots=True)
class Mount:
    """A Serve application's name and route prefix."""

    name: str
    route: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """The servers of a run. `secret` signs their session cookies; `run` tells the run's response stores from others'."""

    servers: tuple[ServerConfig, ...]
    secret: bytes = field(repr=False)
    run: str
    access: Access = Access()

    def model_server(self, name: str) -> ModelServer:
        """Build one server. Called in the replica that is to run it."""
        return self._model_server(name, self._replica())

    def _replica(self) -> Replica:
        """Each replica of a server begins with an endpoint of its own, so that they do not all take the same in turn."""
        context = serve.get_replica_context()
        stores = SharedStores(self.run)
        return Replica(self.secret, first=context.rank.rank, name=context.replica_tag, stores=stores)

    def _model_server(self, name: str, replica: Replica) -> ModelServer:
        config = self._config(name)
        match config.settings:
            case LocalVLLMModelSettings() as settings:
                source = EngineEndpoints(name)
                return LocalVLLMModel(name, settings, replica, source=source, calls=source.calls)
            case LocalVLLMModelProxySettings() as settings:
                owner = settings.model_server.name
                model, source = self._config(owner).settings.model, EngineEndpoints(owner)
                return LocalVLLMModelProxy(name, settings, replica, source=source, model=model, calls=source.calls)
            case VLLMModelSettings() as settings:
                return VLLMModel(name, settings, replica)
            case OpenAIModelSettings() as settings:
                return OpenAIModel(name, settings, replica)
        raise TypeError(f"{name}: {type(config.settings).__name__} is no model server")

    def app(self, name: str, serve_url: str) -> Application:
        """Build one agent or resources server. Called in the replica that is to run it."""
        replica = self._replica()
        neighbours = Neighbours(
            make_model=lambda model: self._model_server(model, replica),
            make_app=self._app,
            serve_url=serve_url,
            key=self.access.own,
        )
        return self._app(name, neighbours)

    def _app(self, name: str, neighbours: Neighbours) -> Application:
        config = self._config(name)
        return load_app(config.app, config.kind)(name, config.settings, neighbours)

    def gateway(self) -> Gateway:
        replica = self._replica()
        models = (config for config in self.servers if config.kind == MODELS)
        return Gateway([self._model_server(config.name, replica) for config in models], replica.name)

    def stores(self) -> AbstractContextManager[None]:
        """Where the replicas' responses are kept. Entered in the process that owns the run, before there are any.

        Raises ConfigError when an SQLite file cannot be used.
        """
        settings = [config.settings for config in self.servers if isinstance(config.settings, ChatSettings)]
        return store_hosts(self.run, [store_setting(each) for each in settings])

    def _config(self, name: str) -> ServerConfig:
        return next(config for config in self.servers if config.name == name)

    def targets(
        self, gateway: Mount, serve_url: str, *, on_head: bool, variables: Mapping[str, str]
    ) -> list[serve.RunTarget]:
        """The Serve applications, ready for `serve.run_many`. With `on_head` their replicas stay on the head node;
        `variables` are those that their processes need and the cluster does not have.
        """
        options = _actor_options(on_head, variables)
        targets = [
            self._target(Mount(config.name, f"/{config.name}"), self._maker(config, serve_url), workers(config), options)
            for config in self.servers
        ]
        replicas = max((workers(config) for config in self.servers if config.kind == MODELS), default=1)
        return [*targets, self._target(gateway, self.gateway, replicas, options)]

    def _target(
        self, mount: Mount, make: Callable[[], Application], replicas: int, options: dict[str, object]
    ) -> serve.RunTarget:
        return _target(mount, lambda: Mounted(self.access.around(make()), mount.route), replicas, options)

    def _maker(self, config: ServerConfig, serve_url: str) -> Callable[[], Application]:
        if config.kind == MODELS:
            return partial(self.model_server, config.name)
        return partial(self.app, config.name, serve_url)

    @property
    def server_names(self) -> tuple[str, ...]:
        return tuple(config.name for config in self.servers)


def workers(config: ServerConfig) -> int:
    return config.settings.num_workers


def _actor_options(on_head: bool, variables: Mapping[str, str]) -> dict[str, object]:
    options: dict[str, object] = {"num_cpus": 0, "resources": {HEAD_RESOURCE: RESOURCE_SHARE} if on_head else {}}
    return options | ({"runtime_env": {"env_vars": dict(variables)}} if variables else {})


def _target(
    mount: Mount, make: Callable[[], object], replicas: int, actor_options: dict[str, object]
) -> serve.RunTarget:
    def application() -> object:
        machine.allow_files()
        made = make()
        settle_memory()
        return made

    @serve.deployment(
        name=mount.name,
        num_replicas=replicas,
        max_ongoing_requests=UNLIMITED_REQUESTS,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_S,
        graceful_shutdown_wait_loop_s=0.2,
        # A line for each request costs as much as converting it; /metrics counts them.
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        ray_actor_options=actor_options,
    )
    @serve.ingress(application)
    class Server:
        """Serve's handle on a raw ASGI application."""

    return serve.RunTarget(target=Server.bind(), name=mount.name, route_prefix=mount.route)


def not_running(names: Sequence[str]) -> dict[str, str]:
    """Those of our applications that do not run yet, and what Serve says of each.

    Raises:
        ClusterError: Serve has given one of them up.
    """
    known = serve.status().applications
    waiting = {name: _told(known[name]) if name in known else "not there yet" for name in names}
    for name in names:
        if name in known and known[name].status == "DEPLOY_FAILED":
            raise ClusterError(f"Ray Serve has given {name} up: {waiting[name]}")
    return {name: told for name, told in waiting.items() if name not in known or known[name].status != "RUNNING"}


def _told(application: ApplicationStatusOverview) -> str:
    """What Serve says of an application, and of its deployments, where the reason stands."""
    messages = [application.message, *(deployment.message for deployment in application.deployments.values())]
    return " ".join(filter(None, messages)) or str(application.status)
