"""What one engine is to be, decided before anything starts; and what it says of itself while it lives.

Both travel between processes, so they are plain frozen values.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local_vllm.plan.placement import Placement
from local_vllm.processes.members import folder_of

# The model string of the project's own tiny model, built on the machine where the engine runs.
DEFAULT_MODEL = "local-vllm-default"

# The variable of `vllm serve` that holds the settings of a Responses API in its own API server.
DIRECT_VARIABLE = "LOCAL_VLLM_DIRECT_RESPONSES"

# Between why an engine has ended and the last lines of its log.
LOG_FOLLOWS = "; the last lines of "

# The namespace of everything of ours in Ray.
NAMESPACE = "local_vllm"


def actor_name(server: str) -> str:
    """The name under which the engine of a model server is found in Ray, in NAMESPACE."""
    return f"engine:{server}"


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One `vllm serve` to launch.

    Attributes:
        run_id: the run that owns it.
        server: the model server's name in the configuration.
        model: a Hub id, a local folder, or DEFAULT_MODEL.
        served_name: the name by which the engine knows its model: the same string, unless the flags say otherwise.
        api_key: what the engine asks of its clients; given to it through its environment only.
        vllm_serve_kwargs: flags of `vllm serve` as the configuration has them.
        vllm_serve_env_vars: its environment variables as the configuration has them.
        placement: where its workers go.
        hf_home: folder of the Hugging Face cache; weights lie in its `hub`.
        hf_token: token for the Hub, if there is one.
        show_stats: let vLLM write its statistics to the log.
        debug: let vLLM log at debug level.
        start_timeout_s: deadline from the start of `vllm serve`, its weights on disk, to its first answer.
        log_path: file on the engine's node for what vLLM prints.
        hub_variables: variables of the run's own environment by which the Hub is reached, for every node.
        stall_timeout_s: how long the engine may generate nothing though it should; None: for ever.
        max_restarts: how often it is started again when it was lost, before it has failed.
        direct_responses: settings of the Responses API in its own API server, as JSON values; None: vLLM's own is there.
        restarts: how often it was. `launch` tells all launches of an engine in a run apart.
    """

    run_id: str
    server: str
    model: str
    served_name: str
    api_key: str = field(repr=False)
    vllm_serve_kwargs: Mapping[str, object]
    vllm_serve_env_vars: Mapping[str, str] = field(repr=False)
    placement: Placement
    hf_home: Path
    hf_token: str | None = field(repr=False)
    show_stats: bool
    debug: bool
    start_timeout_s: float
    log_path: Path
    hub_variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    stall_timeout_s: float | None = 30.0
    max_restarts: int = 5
    direct_responses: Mapping[str, object] | None = None
    restarts: int = 0
    launch: int = 0

    @property
    def members(self) -> Path:
        """The folder in which the processes of this launch make themselves known, on each of its nodes."""
        return folder_of(self.run_id, self.server, self.launch)

    @property
    def scratch(self) -> Path:
        """A folder of this engine alone; beside the log, so that it goes with the logs if nobody else removes it."""
        return self.log_path.with_suffix(".scratch")


class EngineState(enum.StrEnum):
    """Where an engine is in its life.

    starting    for the first time; what goes wrong ends it
    healthy     every rank generates
    stalled     it generates nothing, though nothing of it has ended
    lost        something of it has ended; like a stalled one it is started again
    restarting  it is being started again
    stopping    no new requests, the run is about to end
    failed      it has ended, and is not started again
    stopped     it has ended, as it should
    """

    STARTING = "starting"
    HEALTHY = "healthy"
    STALLED = "stalled"
    LOST = "lost"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_over(self) -> bool:
        return self in (EngineState.FAILED, EngineState.STOPPED)

    @property
    def is_lost(self) -> bool:
        """It has ended, or is about to be ended, and is to be started again."""
        return self in (EngineState.STALLED, EngineState.LOST)

    @property
    def is_coming_up(self) -> bool:
        return self in (EngineState.STARTING, EngineState.RESTARTING)


@dataclass(frozen=True, slots=True)
class Download:
    """How far the fetching of a model's files has come; what was there before counts as done."""

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
    bytes_per_s: float = 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at this speed; None while it stands still."""
        return (self.bytes_total - self.bytes_done) / self.bytes_per_s if self.bytes_per_s > 0 else None


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One engine at one moment. `version` grows with every change.

    Attributes:
        state: where it is in its life.
        detail: what it is doing while it starts ("loading weights"), why it failed otherwise.
        since_s: seconds since the launch began.
        base_url: where it answers, ending in /v1; empty until it does.
        ranks: data-parallel ranks behind that address.
        download: how far the model's files are, while they are fetched.
        restarts: how often it was started again, of `max_restarts`.
    """

    version: int
    server: str
    model: str
    state: EngineState
    detail: str = ""
    since_s: float = 0.0
    base_url: str = ""
    api_key: str = field(default="", repr=False)
    ranks: int = 1
    node_address: str = ""
    log_path: str = ""
    download: Download | None = None
    restarts: int = 0
    max_restarts: int = 0

    @property
    def reason(self) -> str:
        """The detail without the lines of the log that may follow it."""
        return self.detail.partition("\n")[0].partition(LOG_FOLLOWS)[0]

    @property
    def state_in_words(self) -> str:
        """The state, and which restart it is."""
        restarting = self.state is EngineState.RESTARTING
        return f"{self.state} {self.restarts}/{self.max_restarts}" if restarting else str(self.state)
