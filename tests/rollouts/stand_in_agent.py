"""A stand-in for an agent, at the HTTP boundary: a process that answers `POST /<agent>/run` as its row says.

Real agents are tested with their environments. The collector's questions need agents that fail, hang, go away and
come back on command, thousands of times a second. As a program: `stand_in_agent.py PORT`.

A row's `behave` is a list, one entry for each attempt, the last for all further ones:
`{"status": 500}`, `{"delay_s": 1}`, `{"drop": true}`, `{"body": "..."}` or `{}` for an answer.
"""

from __future__ import annotations

import asyncio
import collections
import json
import sys
from typing import Any

from aiohttp import web

AGENT = "weather_agent"
USAGE = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
# Headers of the contract, in ms.
TIMING = "model;dur=812.1, tools;dur=3.0, verify;dur=0.4, total;dur=816"


class StandInAgent:
    """`down` makes it answer 503 everywhere, `asked` counts the calls of each row's `id`."""

    def __init__(self) -> None:
        self.asked: collections.Counter[str] = collections.Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keep_bodies = False
        self.down = False
        self.in_flight = self.most_in_flight = self.looks = self.calls_while_down = 0
        self.app = web.Application(client_max_size=1 << 30)
        self.app.router.add_post("/{agent}/run", self.run)
        self.app.router.add_get("/{agent}/run", self.look)
        self.app.router.add_post("/{agent}/v1/responses", self.respond)
        self.app.router.add_get("/{agent}/health", self.health)
        self.app.router.add_post("/v1/chat/completions", self.chat)
        self.app.router.add_post("/control", self.control)

    async def control(self, request: web.Request) -> web.Response:
        """Sets attributes, and says what the counters are."""
        for name, value in (await request.json()).items():
            setattr(self, name, value)
        known = ("down", "in_flight", "most_in_flight", "looks", "calls_while_down")
        return web.json_response({name: getattr(self, name) for name in known} | {"asked": dict(self.asked)})

    async def health(self, request: web.Request) -> web.Response:
        self.looks += 1
        if request.match_info["agent"].startswith("unknown"):
            return web.Response(status=404, text="Path not found")
        return self._unavailable() if self.down else web.json_response({"status": "ready"})

    def _unavailable(self) -> web.Response:
        error = {"message": "the engine restarts", "code": "engine_restarting", "type": "server_error"}
        return web.json_response({"error": error}, status=503, headers={"retry-after": "0"})

    async def look(self, request: web.Request) -> web.Response:
        """A server whose name begins with `model` is well, and no agent."""
        return web.Response(status=404 if request.match_info["agent"].startswith("model") else 405)

    async def run(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["agent"].startswith("model"):
            return web.Response(status=404, text="Nothing is at /run.")
        body = await request.read()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request, json.loads(body))
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request, row: dict[str, Any]) -> web.StreamResponse:
        if self.down:
            self.calls_while_down += 1
            return self._unavailable()
        behave = row.get("behave")
        if self.keep_bodies:
            self.bodies.append(row)
        if not behave:
            if delay_s := row.get("delay_s"):
                await asyncio.sleep(delay_s)
            return self._rollout(row)
        attempt = self.asked[row["id"]]
        self.asked[row["id"]] += 1
        return await self._behaved(request, row, behave[min(attempt, len(behave) - 1)])

    async def _behaved(self, request: web.Request, row: dict[str, Any], how: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(how.get("delay_s", 0))
        if how.get("drop"):
            request.transport.close()
        if "body" in how:
            return web.Response(text=how["body"], content_type="application/json")
        if "status" in how:
            error = {"error": {"message": f"told to answer {how['status']}", "code": "told"}}
            headers = {"retry-after": str(how["retry_after_s"])} if "retry_after_s" in how else {}
            return web.json_response(error, status=how["status"], headers=headers)
        return self._rollout(row)

    def _rollout(self, row: dict[str, Any]) -> web.Response:
        response = {"object": "response", "output": [], "usage": USAGE}
        answer = row | {"response": response, "reward": row.get("expected_reward", 1.0), "verdict": "checked"}
        headers = {"server-timing": TIMING, "x-model-server": "policy_model", "content-type": "application/json"}
        return web.Response(body=json.dumps(answer).encode(), headers=headers)

    async def chat(self, request: web.Request) -> web.Response:
        """As an engine behind a model server would, where the agent is a real one."""
        await asyncio.sleep(0.2)
        message = {"role": "assistant", "content": "It is sunny.", "tool_calls": []}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        return web.json_response({"id": "c", "created": 1, "model": "stand-in", "choices": [choice], "usage": usage})

    async def respond(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["input"] == "fail":
            error = {"message": "told to fail", "code": "told"}
            return web.json_response({"error": error}, status=400)
        if asked["input"] == "no json":
            return web.Response(text="<html>", content_type="text/html")
        if asked["input"] == "give up":
            failed = {"object": "response", "status": "failed", "output": [], "error": {"message": "told to give up"}}
            return web.json_response(failed)
        output = [
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Paris"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "18 degrees"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is warm."}]},
        ]
        return web.json_response({"object": "response", "output": output, "usage": USAGE, "asked": asked})


async def serve(port: int) -> None:
    runner = web.AppRunner(StandInAgent().app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
