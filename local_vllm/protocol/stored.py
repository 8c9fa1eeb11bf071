"""A stored response: the bytes of a request and of its answer, and what can be read from them later.
Where they are kept is left to the server's response store.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from local_vllm.errors import RequestError
from local_vllm.protocol.supplied import Supplied

_encode = msgspec.json.Encoder().encode
_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}
# Ids of items hold the id of the response that they came with: msg_<32 hex digits><number>.
_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})i?\d+")
_OWN_ID = re.compile(r"resp_[0-9a-f]{32}")


class Stored(Struct, frozen=True, gc=False):
    """One response as it is kept. `previous` is the id of the response that it continues."""

    id: str
    previous: str | None
    request: bytes
    response: bytes

    @property
    def size(self) -> int:
        return len(self.request) + len(self.response)


class _Request(Struct, gc=False):
    input: str | list[Raw] | None = None


class _Response(Struct, gc=False):
    output: list[Raw] = []


class _Item(Struct, gc=False):
    type: str | None = None
    id: str | None = None
    role: str | None = None
    content: Raw = Raw(b"null")


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_decode_item = msgspec.json.Decoder(_Item).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode


def is_own_id(response_id: str) -> bool:
    """Whether an id looks like one that was given here."""
    return _OWN_ID.fullmatch(response_id) is not None


def response_of(item_id: str) -> str | None:
    """The id of the response that an item came with, if the item's id was given here."""
    found = _ITEM_ID.fullmatch(item_id)
    return f"resp_{found[1]}" if found else None


def to_keep(response_id: str, previous: str | None, body: bytes, answer: bytes, supplied: Supplied) -> Stored:
    """The record of an answered request; what its input refers to is kept with it."""
    return Stored(response_id, previous, _with_items(body, supplied) if supplied.items else body, answer)


def _with_items(body: bytes, supplied: Supplied) -> bytes:
    given = _decode_request(body).input
    items = given if isinstance(given, list) else []
    return _encode({"input": [supplied.items.get(_decode_item(item).id or "", item) for item in items]})


# ---- its items


def items_of(chain: Iterable[Stored]) -> list[Raw]:
    """Everything that was said up to the end of a chain of responses (the oldest first), as input items."""
    return [item for stored in chain for item in (*input_of(stored), *_decode_response(stored.response).output)]


def input_of(stored: Stored) -> list[Raw]:
    """The input items of one request, each with an id, in the shape in which OpenAI lists them."""
    given = _decode_request(stored.request).input
    items = [_user_message(given)] if isinstance(given, str) else given or []
    key = stored.id.removeprefix("resp_")
    return [_listed(item, f"{key}i{position}") for position, item in enumerate(items)]


def input_of_chain(chain: Sequence[Stored]) -> list[Raw]:
    """All that the last response of a chain was made from."""
    return [*items_of(chain[:-1]), *input_of(chain[-1])]


def find_items(stored: Stored, item_ids: Collection[str]) -> dict[str, Raw]:
    """Those of a response's items that have one of the ids."""
    items = {_decode_item(item).id: item for item in items_of([stored])}
    return {item_id: items[item_id] for item_id in item_ids if item_id in items}


def _user_message(text: str) -> Raw:
    return Raw(_encode({"role": "user", "content": text}))


def _listed(raw: Raw, key: str) -> Raw:
    item = _decode_item(raw)
    kind = item.type or "message"
    fields: dict[str, Any] = _decode_fields(raw)
    if item.id is None:
        fields["id"] = f"{_PREFIXES.get(kind, 'item')}_{key}"
    if kind == "message":
        fields |= {"type": "message", "status": fields.get("status", "completed")}
        if bytes(memoryview(item.content)[:1]) == b'"':
            fields["content"] = [_text_part(item)]
    elif kind in ("function_call", "function_call_output"):
        fields.setdefault("status", "completed")
    return Raw(_encode(fields))


def _text_part(item: _Item) -> dict[str, Any]:
    if item.role == "assistant":
        return {"type": "output_text", "text": item.content, "annotations": []}
    return {"type": "input_text", "text": item.content}


# ---- listed in pages


class ItemPage(Struct):
    """Which items of a list are asked for, in OpenAI's parameters."""

    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


def item_list(items: Sequence[Raw], page: ItemPage) -> bytes:
    """OpenAI's list object. Raises RequestError when `after` is none of the items."""
    ids = [_decode_item(item).id or "" for item in items]
    order = range(len(items)) if page.order == "asc" else range(len(items) - 1, -1, -1)
    start = 0 if page.after is None else _place(page.after, [ids[number] for number in order]) + 1
    shown = order[start : start + page.limit]
    return _encode({
        "object": "list",
        "data": [items[number] for number in shown],
        "first_id": ids[shown[0]] if shown else None,
        "last_id": ids[shown[-1]] if shown else None,
        "has_more": start + page.limit < len(items),
    })


def _place(after: str, ids: list[str]) -> int:
    if after not in ids:
        raise RequestError(f"No item with id '{after}' found.", param="after", code="invalid_value")
    return ids.index(after)


def deleted(response_id: str) -> bytes:
    return _encode({"id": response_id, "object": "response", "deleted": True})
