"""The Serve applications of a run: Serve started or shared, the servers deployed, and all of it taken away again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from ray import serve

from local_vllm.cluster.head_node import head_node
from local_vllm.cluster.serve_settings import SHORTCUT
from local_vllm.config.client_keys import access_problems, client_keys
from local_vllm.config.schema import GlobalSettings, RunConfig
from local_vllm.errors import ConfigError
from local_vllm.runs.clusters import RunCluster
from local_vllm.runs.ingress import Ingress, own_ingress, shared_ingress, stated_ingress
from local_vllm.runs.janitor import janitor
from local_vllm.runs.record import RunRecord
from local_vllm.runs.serve_start import refuse_taken_names, remove_applications, start_serve
from local_vllm.runs.session_secret import run_key, session_secret
from local_vllm.runs.tenancy import ServeShare, Tenant
from local_vllm.runs.threads import in_thread
from local_vllm.serving.access import Access
from local_vllm.serving.deploy import GATEWAY, Deployment, Mount


@dataclass(frozen=True, slots=True)
class Deployed:
    """What a run has in Serve. `serve_url` is where Serve listens, `url` where the run's gateway is below it."""

    serve_url: str
    gateway: Mount
    names: tuple[str, ...]
    serve_is_ours: bool

    @property
    def url(self) -> str:
        return self.serve_url + self.gateway.route.rstrip("/")


@asynccontextmanager
async def applications(
    config: RunConfig, cluster: RunCluster, tenant: Tenant, record: RunRecord, keep: Callable[[Deployed], None]
) -> AsyncIterator[Deployed]:
    """Deploy every server of `config`; `keep` is called with what there is as soon as that is settled.

    Raises:
        RunError: another run's applications have our names, or Serve cannot be reached from here.
    """
    deployment = Deployment(
        config.servers, session_secret(), record.run_id, Access(client_keys(config.settings), run_key(record.run_id))
    )
    joined = cluster.guard is None
    async with AsyncExitStack() as stack:
        async with tenant.serve() as share:
            ingress = await in_thread(lambda: _allowed(_ingress(config.settings, share, joined), config.settings))
            deployed = _settled(ingress, share, deployment, record)
            # On a private cluster everything goes with the cluster.
            if joined:
                await in_thread(lambda: refuse_taken_names(deployed.names))
                await stack.enter_async_context(_removed_after(deployed, cluster, tenant))
            await in_thread(lambda: start_serve(config.settings, joined))
            stack.enter_context(deployment.stores())
            # A private cluster has them; on others they are for the processes of our own applications alone.
            variables = SHORTCUT if joined and share.is_ours else {}
            targets = deployment.targets(
                deployed.gateway, deployed.serve_url, on_head=ingress.on_head, variables=variables
            )
            await in_thread(lambda: serve.run_many(targets, wait_for_applications_running=False))
            keep(deployed)
        yield deployed


@asynccontextmanager
async def _removed_after(deployed: Deployed, cluster: RunCluster, tenant: Tenant) -> AsyncIterator[None]:
    """Take the applications away on the way out; a janitor does it when this process cannot any more."""
    watching = janitor(cluster.address, deployed.names, shut_down=deployed.serve_is_ours)
    try:
        yield
    finally:
        async with tenant.serve():
            await in_thread(lambda: remove_applications(deployed.names, shut_down=deployed.serve_is_ours))
        watching.dismiss()


def _ingress(settings: GlobalSettings, share: ServeShare, joined: bool) -> Ingress:
    if not joined or not share.is_ours:
        return Ingress(share.url, on_head=False) if share.url else stated_ingress(settings)
    head = head_node()
    return shared_ingress(share.url, head) if share.url else own_ingress(settings, head)


def _allowed(ingress: Ingress, settings: GlobalSettings) -> Ingress:
    """Another run may have had Serve listen more widely than this one asks for."""
    if problems := [*access_problems(settings, urlsplit(ingress.url).hostname or "")]:
        raise ConfigError(problems)
    return ingress


def _settled(ingress: Ingress, share: ServeShare, deployment: Deployment, record: RunRecord) -> Deployed:
    gateway = Mount(GATEWAY, "/") if share.has_root else Mount(f"{GATEWAY}-{record.run_id}", f"/run-{record.run_id}")
    return Deployed(ingress.url, gateway, (*deployment.server_names, gateway.name), share.is_ours)
