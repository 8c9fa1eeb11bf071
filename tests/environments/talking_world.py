"""An environment whose tools wait, remember and fail, and stand-ins for a model and for an episode."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel
from rollout_world import Client

from local_vllm.environments import ResourcesServer, Rollout, Verdict, tool
from local_vllm.errors import EngineUnavailable, RequestError


class Seen(BaseModel):
    """What the tools of one rollout share."""

    words: list[str] = []


class World(ResourcesServer):
    """Tools that wait for each other, remember, and fail."""

    Session = Seen

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.together = asyncio.Barrier(2)

    @tool
    async def say(self, word: str, session: Seen) -> str:
        session.words.append(word)
        return f"heard {word}"

    @tool
    async def meet(self, name: str) -> str:
        """Returns once two are here."""
        async with asyncio.timeout(5):
            await self.together.wait()
        await asyncio.sleep(0.02 if name == "first" else 0)
        return f"met {name}"

    @tool
    async def fail(self) -> None:
        raise KeyError("lost")

    @tool
    async def refuse(self) -> None:
        raise RequestError("Not like this.")

    @tool
    async def ask_elsewhere(self) -> None:
        raise EngineUnavailable("The other model is down.", retry_after_s=7)

    async def verify(self, rollout: Rollout[dict[str, Any], Seen]) -> Verdict:
        if rollout.row.get("broken"):
            raise ZeroDivisionError("no reward")
        return Verdict(
            reward=0.5,
            words=rollout.session.words,
            text=rollout.text,
            calls=[call.name for call in rollout.calls],
        )


TOOLS = ("say", "meet", "fail", "refuse", "ask_elsewhere")


class Picky(ResourcesServer):
    """Its seed_session refuses some rows and breaks on others."""

    async def seed_session(self, row: dict[str, Any], session: dict[str, Any]) -> None:
        if row["mood"] == "bad":
            raise RequestError("The row is in a bad mood.", param="mood")
        raise OSError("no disk")

    async def verify(self, rollout: Rollout[Any, Any]) -> Verdict:
        return Verdict(reward=1)


async def rolled_out(client: Client, given: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post("/run", given)
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    return found


class Recorder:
    """A model that answers with given bytes, and keeps the questions."""

    name = "policy_model"

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []
        self.given: list[dict[bytes, bytes]] = []

    async def respond(self, body: bytes, cookies: dict[bytes, bytes]) -> bytes:
        self.asked.append(body)
        self.given.append(dict(cookies))
        cookies[b"turn"] = b"%d" % len(self.asked)
        return self.answers.pop(0)


class Silent:
    """An episode whose tools answer nothing."""

    async def call(self, name: str, arguments: str) -> str:
        return ""

    async def verify(self, row: Any, response: bytes) -> bytes:
        return response
