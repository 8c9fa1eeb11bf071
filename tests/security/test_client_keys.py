"""Who may use a server: keys from everywhere they may stand, and requests with and without one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from servers_under_test import model_server, over
from stand_in_engine import StandInEngine, engine, mounted_at, serving

from local_vllm.config.client_keys import ClientKeys, access_problems, client_keys, own_client_key
from local_vllm.config.compose import load_run_config
from local_vllm.config.schema import GlobalSettings
from local_vllm.errors import ConfigError
from local_vllm.runs.session_secret import run_key
from local_vllm.serving.access import Access, Guarded, KeyRing
from local_vllm.serving.gateway import Gateway

ASK = {"model": "my/model", "input": "Hello!"}
SERVER = "/policy_model"

App = Callable[[Any, Any, Any], Awaitable[None]]


@pytest.fixture
async def one_engine() -> AsyncIterator[StandInEngine]:
    async with engine() as stand_in:
        yield stand_in


async def status_of(method: str, url: str, key: str | None = None, scheme: str = "Bearer") -> int:
    headers = {} if key is None else {"Authorization": f"{scheme} {key}".strip()}
    async with aiohttp.ClientSession() as session:
        body = {"json": ASK} if method == "POST" else {}
        async with session.request(method, url, headers=headers, **body) as answer:
            return answer.status


async def test_a_request_without_a_key_that_is_valid_gets_openais_401(one_engine: StandInEngine) -> None:
    app = Access(ClientKeys(("one-key", "another-key"))).around(model_server(over(one_engine)))
    async with serving(mounted_at(SERVER, app)) as address:
        with pytest.raises(openai.AuthenticationError) as refused:
            await openai.AsyncOpenAI(base_url=f"{address}{SERVER}/v1", api_key="wrong").responses.create(**ASK)
        assert refused.value.status_code == 401
        assert refused.value.code == "invalid_api_key" and refused.value.type == "invalid_request_error"
        assert "wrong" not in refused.value.message
        for key in ("one-key", "another-key"):
            client = openai.AsyncOpenAI(base_url=f"{address}{SERVER}/v1", api_key=key)
            assert (await client.responses.create(**ASK)).output_text == "Hello"
    assert len(one_engine.asked) == 2


@pytest.mark.parametrize("key", [None, "", "one-ke", "one-key2", "One-key"])
async def test_nothing_but_the_whole_key_opens(one_engine: StandInEngine, key: str | None) -> None:
    app = Access(ClientKeys(("one-key",))).around(model_server(over(one_engine)))
    async with serving(mounted_at(SERVER, app)) as address:
        assert await status_of("POST", f"{address}{SERVER}/v1/responses", key) == 401
        assert await status_of("POST", f"{address}{SERVER}/v1/responses", "one-key", scheme="Basic") == 401
        assert await status_of("POST", f"{address}{SERVER}/v1/responses", "one-key", scheme="bearer") == 200


@pytest.mark.parametrize("path", ["/v1/models", "/get_inner_vllm_config", "/v1/responses/health", "/v1/responses/x", "/no"])
async def test_no_path_but_the_health_is_open(one_engine: StandInEngine, path: str) -> None:
    app = Access(ClientKeys(("one-key",))).around(model_server(over(one_engine)))
    async with serving(mounted_at(SERVER, app)) as address:
        assert await status_of("GET", f"{address}{SERVER}{path}") == 401
        assert await status_of("GET", f"{address}{SERVER}/health") == 200
        assert await status_of("POST", f"{address}{SERVER}/health") == 401


async def test_the_gateway_guards_the_servers_below_it(one_engine: StandInEngine) -> None:
    app = Access(ClientKeys(("one-key",))).around(Gateway([model_server(over(one_engine))]))
    async with serving(app) as address:
        for path in ("/v1/responses", "/v1/chat/completions", f"{SERVER}/v1/responses", f"//{SERVER[1:]}/v1/responses"):
            assert await status_of("POST", address + path) == 401
        for path in ("/health", f"{SERVER}/health"):
            assert await status_of("GET", address + path) == 200
        assert await status_of("POST", f"{address}{SERVER}/v1/responses", "one-key") == 200


async def test_a_key_that_is_taken_out_of_its_file_is_refused_within_two_seconds(
    one_engine: StandInEngine, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\nold-key\n\nkept-key\n")
    app = Access(ClientKeys(("stated-key",), file)).around(model_server(over(one_engine)))
    async with serving(mounted_at(SERVER, app)) as address:
        url = f"{address}{SERVER}/v1/responses"
        assert [await status_of("POST", url, key) for key in ("old-key", "kept-key", "stated-key")] == [200] * 3
        file.write_text("kept-key\nnew-key\n")
        await asyncio.sleep(1.5)
        assert await status_of("POST", url, "old-key") == 401
        assert [await status_of("POST", url, key) for key in ("new-key", "kept-key", "stated-key")] == [200] * 3


def test_a_file_that_is_gone_has_no_keys_and_one_that_is_back_has_them_again(tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "keys"
    file.write_text("a-key")
    ring = KeyRing(ClientKeys((), file), own="own-key", clock=lambda: now)
    assert ring.opens(b"a-key")
    file.rename(tmp_path / "elsewhere")
    now = 2.0
    assert not ring.opens(b"a-key") and ring.opens(b"own-key")
    (tmp_path / "elsewhere").rename(file)
    now = 4.0
    assert ring.opens(b"a-key")


def test_an_empty_own_key_opens_nothing() -> None:
    assert not KeyRing(ClientKeys(("a-key",)), own="").opens(b"")


def test_without_keys_the_application_stands_alone() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    assert Access().around(app) is app
    assert isinstance(Access(ClientKeys(("k",))).around(app), Guarded)


# Where keys stand


def test_keys_come_from_the_configuration_the_environment_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text("api_keys: [a-key, b-key]\napi_keys_file: keys.txt\n")
    settings = load_run_config([], cwd=tmp_path).settings
    keys = client_keys(settings, {"LOCAL_VLLM_API_KEYS": "c-key, a-key"})
    assert keys.stated == ("a-key", "b-key", "c-key")
    assert keys.file is not None and keys.file.name == "keys.txt"


def test_the_commands_send_the_key_that_they_were_told_of_else_one_of_the_configuration() -> None:
    both = GlobalSettings(client_api_key="told", api_keys=["first", "second"])
    assert own_client_key(both, {"LOCAL_VLLM_API_KEY": "of-the-environment"}) == "of-the-environment"
    assert own_client_key(both, {}) == "told"
    assert own_client_key(GlobalSettings(api_keys=["first", "second"]), {}) == "first"
    assert own_client_key(GlobalSettings(), {}) is None


@pytest.mark.parametrize(
    ("settings", "host", "problem"),
    [
        ({}, "127.0.0.1", None),
        ({}, "localhost", None),
        ({}, "0.0.0.0", "api_keys"),
        ({}, "10.0.0.1", "api_keys"),
        ({"allow_unauthenticated": True}, "0.0.0.0", None),
        ({"api_keys": ["a-key"]}, "0.0.0.0", None),
        ({"api_keys_file": "/nowhere/keys"}, "127.0.0.1", "api_keys_file"),
        ({"api_keys_file": os.devnull}, "0.0.0.0", "api_keys_file"),
    ],
)
def test_listening_beyond_this_machine_without_a_key_is_refused(
    settings: dict[str, Any], host: str, problem: str | None
) -> None:
    found = [*access_problems(GlobalSettings(**settings), host, {})]
    assert [each.path for each in found] == ([problem] if problem else [])


def test_the_refusal_says_what_to_write() -> None:
    (problem,) = access_problems(GlobalSettings(), "0.0.0.0", {})
    for words in ("++api_keys_file=", "LOCAL_VLLM_API_KEYS", "++allow_unauthenticated=true", "0.0.0.0"):
        assert words in problem.message


@pytest.mark.parametrize("wrong", ["[secret-one,'']", "'secret one'", "{a: secret-one}", "[]"])
def test_keys_that_are_none_are_refused_without_showing_them(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "env.yaml").write_text(f"api_keys: {wrong}\n")
    with pytest.raises(ConfigError) as refused:
        load_run_config([], cwd=tmp_path)
    assert refused.value.problems[0].path == "api_keys"
    assert "secret" not in str(refused.value)


def test_a_secret_on_the_command_line_is_told_without_showing_it(tmp_path: Path) -> None:
    (tmp_path / "env.yaml").touch()
    config = load_run_config(["+api_keys=[a-key]", "+client_api_key=b-key"], cwd=tmp_path)
    told = [notice for notice in config.notices if "on the command line" in notice]
    assert len(told) == 2 and not any("-key" in notice for notice in told)
    assert "a-key" not in repr(config) and "b-key" not in repr(config)


def test_a_run_has_a_key_of_its_own_that_no_other_run_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert run_key("a") == run_key("a") != run_key("b")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of-somebody-else"))
    of_somebody_else = run_key("a")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert run_key("a") != of_somebody_else
