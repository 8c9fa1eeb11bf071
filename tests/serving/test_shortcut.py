"""Which requests take the short way past Serve's own handling, and as what they arrive."""

from __future__ import annotations

import asyncio
import importlib
import threading
from typing import Any

import pytest

from local_vllm.cluster.serve_settings import SHORTCUT
from local_vllm.serving.shortcut import Mounted, Shortcut, middlewares


class Recorder:
    """An application that keeps the scopes that it is called with."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: dict[str, Any], receive: object, send: object) -> None:
        self.scopes.append(scope)


@pytest.fixture(autouse=True)
def nothing_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mounted, "here", None)


def http(path: str, **more: object) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": path, "headers": [], **more}


async def started(application: Recorder, route: str) -> Mounted:
    mounted = Mounted(application, route)
    await mounted({"type": "lifespan"}, None, None)
    application.scopes.clear()
    return mounted


def test_serve_finds_it_by_the_variable():
    (path,) = SHORTCUT.values()
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is middlewares
    (only,) = middlewares()
    assert only.cls is Shortcut


@pytest.mark.parametrize(
    ("route", "path", "is_ours"),
    [
        ("/a", "/a/v1/responses", True),
        ("/a", "/a", True),
        ("/a", "/a/", True),
        ("/a", "/ab/v1/responses", False),
        ("/a", "/v1/responses", False),
        ("/a", "/-/healthz", False),
        ("/", "/v1/responses", True),
        ("/", "/", True),
        ("/", "/-/healthz", False),
        ("/", "/-/routes", False),
        ("/", "/-", True),
    ],
)
async def test_what_is_below_the_route_is_the_applications(route: str, path: str, is_ours: bool):
    application, serve = Recorder(), Recorder()
    await started(application, route)
    await Shortcut(serve)(http(path), None, None)
    assert (len(application.scopes), len(serve.scopes)) == ((1, 0) if is_ours else (0, 1))


async def test_the_root_path_is_the_route_below_that_of_the_server():
    application = Recorder()
    await started(application, "/a")
    shortcut = Shortcut(Recorder())
    await shortcut(http("/a/x"), None, None)
    await shortcut(http("/a/x", root_path="/outer"), None, None)
    assert [scope["root_path"] for scope in application.scopes] == ["/a", "/outer/a"]


async def test_a_request_has_the_id_that_its_client_gave_it_or_one_of_its_own():
    application = Recorder()
    await started(application, "/")
    shortcut = Shortcut(Recorder())
    await shortcut(http("/x", headers=[(b"x-request-id", b"mine")]), None, None)
    await shortcut(http("/x"), None, None)
    await shortcut(http("/x"), None, None)
    given, first, second = [scope["local_vllm.request_id"] for scope in application.scopes]
    assert given == b"mine" and len(first) == len(second) == 32 and first != second


async def test_other_kinds_of_connections_go_to_serve():
    application, serve = Recorder(), Recorder()
    await started(application, "/")
    for scope in ({"type": "websocket", "path": "/x"}, {"type": "lifespan"}):
        await Shortcut(serve)(scope, None, None)
    assert not application.scopes and len(serve.scopes) == 2


async def test_without_an_application_all_go_to_serve():
    serve = Recorder()
    await Shortcut(serve)(http("/x"), None, None)
    assert len(serve.scopes) == 1


async def test_an_application_that_lives_in_another_event_loop_is_asked_by_serve():
    application, serve = Recorder(), Recorder()
    thread = threading.Thread(target=lambda: asyncio.run(started(application, "/")))
    thread.start()
    await asyncio.to_thread(thread.join)
    await Shortcut(serve)(http("/x"), None, None)
    assert not application.scopes and len(serve.scopes) == 1
