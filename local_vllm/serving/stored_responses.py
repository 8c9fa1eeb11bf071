"""The routes below /v1/responses/{id}: a stored response, its deletion, what it was made from, and an end put to
it. One that no store has may be kept by an engine: `native_responses` asks.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qsl, unquote

import msgspec

from local_vllm.errors import RequestError
from local_vllm.protocol.stored import ItemPage, Stored, deleted, input_of_chain, item_list
from local_vllm.serving.asgi import Answer, Routes, path_below_root
from local_vllm.serving.native_responses import NativeResponses, first_that_knows
from local_vllm.serving.replies import Reply
from local_vllm.serving.requests import Request
from local_vllm.serving.response_store import ResponseStore

_MOST_ITEMS = 100
_ORDERS = ("asc", "desc")
_NUMBER = re.compile(r"\d{1,9}")


@dataclass(frozen=True, slots=True)
class StoredResponses:
    """Where responses may be: our stores, each once, and then the engines that keep theirs."""

    stores: Sequence[ResponseStore]
    natives: Sequence[NativeResponses]

    def routes(self) -> Routes:
        return {
            "/v1/responses/{id}": {"GET": self._get, "DELETE": self._delete},
            "/v1/responses/{id}/input_items": {"GET": self._get_input_items},
            "/v1/responses/{id}/cancel": {"POST": self._cancel},
        }

    async def _get(self, request: Request) -> Answer:
        """The response as it was answered."""
        stored = await self._find(_id(request))
        if stored is None:
            return await self._ask_engines(request)
        if _query(request).get("stream") == "true":
            raise RequestError(
                "A stored response is not streamed again: ask without 'stream'.",
                param="stream",
                code="unsupported_value",
            )
        return Reply(200, stored.response)

    async def _delete(self, request: Request) -> Answer:
        response_id = _id(request)
        if not any(await asyncio.gather(*[store.delete(response_id) for store in self.stores])):
            return await self._ask_engines(request)
        return Reply(200, deleted(response_id))

    async def _get_input_items(self, request: Request) -> Answer:
        """All items that the response was made from, those of the responses that it continues too; a part of them
        is not given for the whole.
        """
        found = await asyncio.gather(*[store.chain(_id(request)) for store in self.stores])
        chain: list[Stored] = next((each for each in found if each), [])
        if not chain:
            return await self._ask_engines(request, "/input_items")
        if (gone := chain[0].previous) is not None:
            raise _not_found(gone)
        return Reply(200, item_list(input_of_chain(chain), _page(_query(request))))

    async def _cancel(self, request: Request) -> Answer:
        if await self._find(_id(request)) is None:
            return await self._ask_engines(request, "/cancel")
        raise RequestError(
            "This response is over: only one that was asked for with background=true can be cancelled.",
            code="invalid_value",
        )

    async def _find(self, response_id: str) -> Stored | None:
        found = await asyncio.gather(*[store.get(response_id) for store in self.stores])
        return next((each for each in found if each is not None), None)

    async def _ask_engines(self, request: Request, part: str = "") -> Answer:
        """`part` is what follows the id in the path. Raises RequestError (404) when there is nobody to ask."""
        response_id = _id(request)
        asks = [partial(native.ask, request, response_id, part) for native in self.natives]
        answer = await first_that_knows(asks)
        if answer is None:
            raise _not_found(response_id)
        return answer


def _id(request: Request) -> str:
    return unquote(path_below_root(request.scope).split("/")[3])


def _query(request: Request) -> dict[str, str]:
    return dict(parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True))


def _page(query: dict[str, str]) -> ItemPage:
    limit = query.get("limit", "20")
    if not _NUMBER.fullmatch(limit) or not 1 <= int(limit) <= _MOST_ITEMS:
        message = f"Invalid 'limit': expected a number from 1 to {_MOST_ITEMS}, got {limit[:40]!r}."
        raise RequestError(message, param="limit", code="invalid_value")
    order = query.get("order", "desc")
    if order not in _ORDERS:
        message = f"Invalid 'order': expected 'asc' or 'desc', got {order[:40]!r}."
        raise RequestError(message, param="order", code="invalid_value")
    return msgspec.convert({"limit": int(limit), "order": order, "after": query.get("after")}, ItemPage)


def _not_found(response_id: str) -> RequestError:
    return RequestError(f"Response with id '{response_id[:200]}' not found.", status=404, code="not_found")
