"""Every socket that a run listens on, who may reach it, and what stands in the README about it; on a real `ng_run`
in front of an engine that is not there.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import psutil
import pytest
from ng_run_process import NgRun, command_line, running, until

from local_vllm.runs.session_secret import run_key

pytestmark = pytest.mark.engine

README = (Path(__file__).parents[2] / "README.md").read_text()
KEY = "key-of-a-client"
PASSWORD = "a-secret-of-the-engine"

CONFIG = f"""\
api_keys_file: keys.txt
policy_model:
  responses_api_models:
    vllm_model: {{base_url: "http://127.0.0.1:9/v1", api_key: {PASSWORD}, model: m}}
simple_task:
  resources_servers:
    simple_task: {{entrypoint: app.py}}
simple_agent:
  responses_api_agents:
    simple_agent:
      entrypoint: app.py
      model_server: policy_model
      resources_server: simple_task
      resources_server_in_process: false
"""


PATHS = ("/v1/responses", "/policy_model/v1/responses", "/simple_agent/run", "/simple_task/verify")
LOOKS = 20
once = pytest.mark.parametrize("run", ["127.0.0.1"], indirect=True)


class Listening(NamedTuple):
    """A socket, by whose it is in the README's words; `everybody` can reach it, or only this machine."""

    whose: str
    everybody: bool


@pytest.fixture(scope="module", params=["127.0.0.1", "0.0.0.0"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NgRun]:
    folder = tmp_path_factory.mktemp("run")
    (folder / "keys.txt").write_text(f"{KEY}\n")
    (folder / "env.yaml").touch()
    (folder / "config.yaml").write_text(CONFIG)
    with running(folder, "+config_paths=[config.yaml]", f"++http_host={request.param}", deadline_s=180) as started:
        started.http_host = request.param
        yield started


def whose(process: psutil.Process, port: int, run: NgRun, variables: dict[str, str]) -> str:
    """A socket in the README's words; what it has no words for is the command line of whose it is."""
    if "haproxy" in process.name():
        names = {
            run.port: "gateway",
            int(variables["RAY_SERVE_HAPROXY_STATS_PORT"]): "HAProxy's statistics",
            int(variables["RAY_SERVE_HAPROXY_METRICS_PORT"]): "HAProxy's metrics",
        }
        return names.get(port, f"HAProxy {port}")
    if port in replica_range(variables):
        return "replicas"
    if port == int(variables["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"]):
        return "Serve's fallback"
    if port == int(variables["RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"]):
        return "Serve's fallback (gRPC)"
    names = {"gcs_server": "Ray's control service", "raylet": "Ray's node service"}
    if process.name() in names:
        return names[process.name()]
    for part, name in (
        ("dashboard/agent.py", "Ray's agents"),
        ("runtime_env", "Ray's agents"),
        ("log_monitor", "Ray's agents"),
        ("dashboard", "Ray's dashboard"),
        ("autoscaler", "Ray's monitor"),
        ("ray::", "Ray's workers"),
        ("local_vllm", "Ray's workers"),
        ("ng_run", "Ray's workers"),
    ):
        if part in command_line(process):
            return name
    return command_line(process)[:100]


def replica_range(variables: dict[str, str]) -> range:
    first, last = (int(variables[f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT"]) for end in ("MIN", "MAX"))
    return range(first, last + 1)


def variables_of(run: NgRun) -> dict[str, str]:
    assert until(lambda: run.named("bin/haproxy"), 20)
    return run.named("bin/haproxy")[0].environ()


def listening(run: NgRun) -> set[Listening]:
    """What two looks found alike, a second apart: processes come and go, and for a moment a child is like its parent."""
    seen: set[Listening] | None = None
    for _ in range(LOOKS):
        before, seen = seen, look(run)
        if seen and seen == before:
            return seen
        time.sleep(1)
    raise AssertionError(f"what listens changes all the time; the last time it was {seen}")


def look(run: NgRun) -> set[Listening] | None:
    """None when a process ended meanwhile."""
    processes = [*run.processes(), psutil.Process(run.process.pid)]
    try:
        variables = variables_of(run)
        return {
            Listening(whose(process, each.laddr.port, run, variables), not each.laddr.ip.startswith(("127.", "::1")))
            for process in processes
            for each in process.net_connections(kind="inet")
            if each.status == psutil.CONN_LISTEN
        }
    except psutil.NoSuchProcess:
        return None


def told() -> dict[str, str]:
    """Socket -> who reaches it, as the README has it."""
    table = README.partition("### What listens")[2].partition("\n#")[0]
    return {row[1]: row[2] for row in re.finditer(r"^\| ([^|`]+?) \| ([^|]+?) \|", table, re.MULTILINE)}


def test_every_socket_stands_in_the_readme_with_who_may_reach_it(run: NgRun) -> None:
    readme, found = told(), listening(run)
    print(*sorted(found), sep="\n")
    assert {each.whose for each in found} <= readme.keys()
    for each in found:
        who = readme[each.whose]
        allowed = who == "everybody" or (who == "as `http_host` says" and run.http_host == "0.0.0.0")
        assert allowed or not each.everybody, each
    assert Listening("gateway", run.http_host == "0.0.0.0") in found


def replica_ports(run: NgRun) -> list[int]:
    ports = replica_range(variables_of(run))
    return sorted({
        each.laddr.port
        for process in run.named("ServeReplica")
        for each in process.net_connections(kind="inet")
        if each.status == psutil.CONN_LISTEN and each.laddr.port in ports
    })


async def statuses(url: str) -> list[int]:
    """Without a key, with a wrong one, with the right one."""
    found = []
    async with aiohttp.ClientSession() as session:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {KEY}"}):
            async with session.post(url, json={"model": "m", "input": "Hello!"}, headers=headers) as answer:
                found.append(answer.status)
    return found


async def test_the_key_is_asked_for_at_the_gateway_and_at_each_replicas_own_port(run: NgRun) -> None:
    ports = replica_ports(run)
    assert len(ports) == 4  # three servers and the gateway
    for path in PATHS:
        none, wrong, right = await statuses(run.url + path)
        assert (none, wrong) == (401, 401) and right not in (401, 404), path
    for port in ports:
        # What is not below a replica's own route Serve answers itself, with a 404.
        found = [await statuses(f"http://127.0.0.1:{port}{path}") for path in PATHS]
        guarded = [each for each in found if each[0] != 404]
        assert guarded and all(each[:2] == [401, 401] and each[2] != 401 for each in guarded), (port, found)
    async with aiohttp.ClientSession() as session, session.get(f"{run.url}/health") as answer:
        assert answer.status in (200, 503)


async def request_id(session: aiohttp.ClientSession, url: str, headers: dict[str, str] | None = None) -> str:
    """The one that the answer tells."""
    async with session.post(url, json={"model": "m", "input": "Hello!"}, headers=headers) as answer:
        (told,) = answer.headers.getall("x-request-id")
        return told


@once
async def test_requests_take_the_short_way_past_serve_whose_own_ids_are_uuids(run: NgRun) -> None:
    """Until HAProxy has seen a replica answer, Serve's fallback hands requests on, and gives them ids of its own."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        for path in PATHS:
            async with asyncio.timeout(20):
                while not re.fullmatch("[0-9a-f]{32}", await request_id(session, run.url + path)):
                    await asyncio.sleep(0.5)
            assert await request_id(session, run.url + path, {"x-request-id": "mine"}) == "mine"
        async with session.get(f"http://127.0.0.1:{replica_ports(run)[0]}/-/healthz") as answer:
            assert answer.status == 200


@once
async def test_a_large_body_without_a_key_is_refused_with_a_401_too(run: NgRun) -> None:
    async with aiohttp.ClientSession() as session:
        body = {"model": "m", "input": "x" * (8 << 20)}
        async with session.post(f"{run.url}/v1/responses", json=body) as answer:
            assert answer.status == 401
            assert (await answer.json())["error"]["code"] == "invalid_api_key"


@once
@pytest.mark.parametrize(("kib", "status"), [(30, 404), (40, 431), (60, 431), (64, 400)])
async def test_headers_up_to_our_own_limit_come_through_the_ingress_which_ends_larger_ones(run: NgRun, kib: int, status: int) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "x-large": "x" * (kib << 10)}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{run.url}/nothing") as answer:
        assert answer.status == status


@once
def test_the_commands_of_the_runs_owner_and_agents_over_http_have_a_key_of_their_own(run: NgRun) -> None:
    """The agent asks its environment for its tools first, over HTTP, and then the engine, which is not there."""
    env = os.environ | {"XDG_STATE_HOME": str(run.state)}
    call = [str(Path(sys.executable).parent / "ng_call"), "+agent_name=simple_agent", "Hello!"]
    done = subprocess.run(call, env=env, cwd=run.state.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "status 503" in done.stderr, done.stderr


@once
def test_no_secret_stands_on_a_command_line_in_a_record_or_in_a_log(run: NgRun) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(run.state))
        secrets = [KEY, PASSWORD, run_key(run.record()["run_id"]), (Path(run.record()["volatile"]) / "ray_token").read_text()]
    shown = [command_line(process) for process in [*run.processes(), psutil.Process(run.process.pid)]]
    status = [str(Path(sys.executable).parent / "ng_status"), "--json"]
    env = os.environ | {"XDG_STATE_HOME": str(run.state)}
    shown.append(subprocess.run(status, env=env, capture_output=True, text=True, timeout=60).stdout)
    assert '"policy_model"' in shown[-1]
    shown.append(run.text())
    folders = [run.state / "local_vllm", Path(run.record()["volatile"])]
    for file in (file for folder in folders for file in folder.rglob("*") if file.is_file()):
        if file.name not in ("ray_token", "session_secret"):
            shown.append(file.read_bytes().decode(errors="replace"))
    for secret in secrets:
        assert not [text[:200] for text in shown if secret.strip() in text]


@once
async def test_the_inner_config_is_told_without_the_key(run: NgRun) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{run.url}/policy_model/get_inner_vllm_config") as answer:
            assert PASSWORD not in await answer.text()


@once
def test_ray_refuses_a_client_that_has_not_its_token(run: NgRun) -> None:
    record = run.record()
    code = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, configure_logging=False); print('joined')"
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    wrong = run.state / "wrong_token"
    wrong.write_text("0" * 64)
    right = f"{record['volatile']}/ray_token"
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", code, record["ray_address"]],
            env=bare | more, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        for more in (
            {"RAY_AUTH_MODE": "disabled"},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": right},
        )
    ]
    assert ["joined" in client.communicate(timeout=90)[0] for client in clients] == [False, False, True]


@once
def test_a_key_that_is_taken_out_of_the_file_is_refused_by_every_replica(run: NgRun) -> None:
    keys = run.state.parent / "keys.txt"
    keys.write_text("another-key\n")
    try:
        time.sleep(2)
        with socket.create_connection(("127.0.0.1", run.port), timeout=10) as connection:
            connection.sendall(
                f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n".encode()
            )
            assert b" 401 " in connection.recv(4096).split(b"\r\n")[0]
    finally:
        keys.write_text(f"{KEY}\n")
