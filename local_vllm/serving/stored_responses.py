"""The routes below /v1/responses/{id}: a stored response, its deletion, and what it was made from."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, unquote

import msgspec

from local_vllm.errors import RequestError
from local_vllm.protocol.stored import ItemPage, Stored, deleted, input_of_chain, item_list
from local_vllm.serving.asgi import Request, path_below_root
from local_vllm.serving.replies import Reply
from local_vllm.serving.response_store import ResponseStore

_MOST_ITEMS = 100
_ORDERS = ("asc", "desc")
_NUMBER = re.compile(r"\d{1,9}")


async def get_response(request: Request, stores: Sequence[ResponseStore]) -> Reply:
    """The response as it was answered."""
    response_id = _id(request)
    if _query(request).get("stream") == "true":
        raise RequestError(
            "A stored response is not streamed again: ask without 'stream'.",
            param="stream",
            code="unsupported_value",
        )
    found = await asyncio.gather(*[store.get(response_id) for store in stores])
    stored = next((each for each in found if each is not None), None)
    if stored is None:
        raise _not_found(response_id)
    return Reply(200, stored.response)


async def delete_response(request: Request, stores: Sequence[ResponseStore]) -> Reply:
    response_id = _id(request)
    if not any(await asyncio.gather(*[store.delete(response_id) for store in stores])):
        raise _not_found(response_id)
    return Reply(200, deleted(response_id))


async def get_input_items(request: Request, stores: Sequence[ResponseStore]) -> Reply:
    """All items that the response was made from, those of the responses that it continues too."""
    response_id, page = _id(request), _page(_query(request))
    found = await asyncio.gather(*[store.chain(response_id) for store in stores])
    chain: list[Stored] = next((each for each in found if each), [])
    if not chain:
        raise _not_found(response_id)
    return Reply(200, item_list(input_of_chain(chain), page))


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
