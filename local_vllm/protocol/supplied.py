"""What a request names and does not hold: an earlier response, items of stored responses, audio files.
Says what that is, and puts it in its place once it is there; fetching it is left to the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from local_vllm.errors import RequestError
from local_vllm.protocol.request import InputItem, OpenAIFields, decode_part


class Wanted(Struct, frozen=True):
    """What has to be fetched before a request can be converted."""

    previous_response_id: str | None = None
    item_ids: tuple[str, ...] = ()
    audio_paths: tuple[str, ...] = ()


class Supplied(Struct, frozen=True):
    """What was fetched: the items before the request's own, those that it refers to, audio as data URLs."""

    earlier: tuple[Raw, ...] = ()
    items: Mapping[str, Raw] = {}
    audio: tuple[str, ...] = ()


NOTHING = Supplied()

REFERENCE = "item_reference"
_REFERENCES = (None, REFERENCE)

_decode_item = msgspec.json.Decoder(InputItem).decode
_decode_paths = msgspec.json.Decoder(list[str]).decode
_AUDIO = ("audio_data", "audio_path", "audio_paths")


def wanted(request: OpenAIFields) -> Wanted | None:
    """None for the many requests that hold all they speak of."""
    ids = referred_ids(request.input) if type(request.input) is list else ()
    paths = audio_paths(request.metadata) if request.metadata else ()
    if request.previous_response_id is None and not ids and not paths:
        return None
    return Wanted(request.previous_response_id, ids, paths)


def is_reference(item: InputItem) -> bool:
    """OpenAI's clients may leave the type of a reference out."""
    return item.type == REFERENCE or (item.type is None and item.role is None and item.id is not None)


def referred_ids(items: list[InputItem]) -> tuple[str, ...]:
    return tuple([item.id for item in items if item.type in _REFERENCES and item.id is not None and is_reference(item)])


def audio_paths(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that `audio_path`, or `audio_paths` (a list, or one as a JSON string), names.

    Raises RequestError when more than one of the audio keys is there.
    """
    given = [name for name in _AUDIO if metadata.get(name)]
    if len(given) > 1:
        raise RequestError(
            f"Invalid 'metadata': only one of {' and '.join(given)} may be given.",
            param="metadata",
            code="invalid_value",
        )
    if given == ["audio_path"]:
        return (metadata["audio_path"],)
    if given != ["audio_paths"]:
        return ()
    paths = metadata["audio_paths"]
    return tuple(paths if isinstance(paths, list) else _listed(paths))


def _listed(paths: str) -> list[str]:
    try:
        return _decode_paths(paths.encode())
    except (msgspec.DecodeError, UnicodeError) as problem:
        raise RequestError(
            f"Invalid 'metadata.audio_paths': expected a list of paths ({problem}).",
            param="metadata.audio_paths",
            code="invalid_value",
        ) from problem


def audio_urls(request: OpenAIFields, supplied: Supplied) -> tuple[str, ...]:
    """The audio of a request as data URLs, whether it was sent or fetched."""
    data = (request.metadata or {}).get("audio_data")
    if not data:
        return supplied.audio
    if not isinstance(data, str) or not data.startswith("data:audio/"):
        raise RequestError(
            "Invalid 'metadata.audio_data': expected a URL that begins with data:audio/.",
            param="metadata.audio_data",
            code="invalid_value",
        )
    return (data,)


def earlier_items(supplied: Supplied) -> list[InputItem]:
    return [decode_part(_decode_item, raw, "previous_response_id") for raw in supplied.earlier]


def resolved(items: list[InputItem], supplied: Supplied) -> list[InputItem]:
    """The items with those in their places that references name."""
    if not supplied.items:
        return items
    return [
        decode_part(_decode_item, supplied.items[item.id], f"input[{position}]")
        if item.id in supplied.items and is_reference(item)
        else item
        for position, item in enumerate(items)
    ]
