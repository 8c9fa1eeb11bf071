"""The environment of a private cluster: Ray's authentication, and Serve behind HAProxy with its fast settings.

Serve reads these variables when it is imported, in every process, so they are set before Ray starts.
Each entry says why it is not left at its default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from local_vllm.cluster import machine

# What `ports` of `serve_environment` are for, in this order, and how many replicas a node can have.
PORTS_NEEDED = 4
REPLICA_PORTS = 500
# What the processes of our own applications need besides: Serve then lets ours take requests before it does.
SHORTCUT: Mapping[str, str] = MappingProxyType({
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "local_vllm.serving.shortcut.middlewares"
})
MAX_CONNECTIONS = 32_768
SPARE_FILES = 1000


def serve_environment_here(run_dir: Path) -> dict[str, str]:
    """Serve's variables for a cluster whose head is this machine: see `serve_environment`."""
    replicas = machine.port_block(REPLICA_PORTS)
    ports = machine.free_ports(PORTS_NEEDED, apart_from=replicas)
    return serve_environment(run_dir, ports, replicas, machine.cpu_count(), machine.open_files())


def serve_environment(
    run_dir: Path, ports: Sequence[int], replicas: range, cpus: int, open_files: int
) -> dict[str, str]:
    """Serve's variables: HAProxy in front, replicas reached directly, all files and fixed ports private to the run.

    Args:
        run_dir: a folder of this run or cluster alone; HAProxy's sockets and configuration go below it. Its path has
            at most 20 bytes: Serve adds 57 for a node, and HAProxy takes sockets' names up to 97.
        ports: `PORTS_NEEDED` free ports.
        replicas: the ports that replicas take, each the first that is free.
        cpus: cores of this machine.
        open_files: how many files a process on this machine may open.
    """
    haproxy = run_dir / "ha"
    stats, metrics, http, grpc = ports
    return {
        # The default proxy is a Python process: about forty times the CPU time per request.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # A datagram to syslog for each request otherwise, whether anybody reads it or not: now it is one in many.
        "RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:514 sample 1:100000",
        # 16 KiB otherwise: four times the reads and writes for a large body, and no room for headers that we take.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(64 << 10),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, cpus // 2))),
        # 4096 connections are not enough for rollouts beside clients that are idle. HAProxy asks for two files for each,
        # and for a pipe to every fourth.
        "RAY_SERVE_HAPROXY_MAXCONN": str(max(512, min(MAX_CONNECTIONS, (open_files - SPARE_FILES) * 2 // 5))),
        # An hour otherwise, in which a client that never ends its headers holds its connection. A client that waits
        # for an answer is silent for longer, and is not meant: HAProxy counts that time to the server.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
        # The defaults are shared by every user of the machine.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(grpc),
        # Two clusters on one machine would both begin at 30000.
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replicas[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replicas[-1]),
        # A machine that is busy with an engine's start may need more than three attempts at a replica.
        "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "20",
        # Ten rounds in a second otherwise, which cost an engine that starts beside them on few cores two seconds.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        # Three failed checks and a start: how long nobody listens when HAProxy, or what starts it, has been killed.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # Stopping replicas would otherwise sleep for half a minute.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
        # Whenever a replica comes or goes HAProxy rereads its configuration, and what is in flight stays with the old
        # process: it must live as long as an answer may take. Serve ends it by itself when it stops.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "14400",
    }


def ray_environment(token_path: Path) -> dict[str, str]:
    """Ray's variables: a token of this cluster's own, so that nothing is written to the user's home."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's workers give way to everything else (nice 15); ours answer requests.
        "RAY_worker_niceness": "0",
        # A node whose processes are gone is lost after 3 s, one that says nothing after half a minute: by default a
        # minute, and a shorter one would lose nodes that are only busy.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "10000",
        "RAY_health_check_failure_threshold": "3",
    }
