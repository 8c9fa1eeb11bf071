"""How much one request may hold: items of its input, and bytes of an image that it brings along.

Images that it only names by an address are the engine's to fetch, or to refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from local_vllm.errors import RequestError
from local_vllm.protocol.request import InputItem, MediaUrl, Part, decode_part

MAX_INPUT_ITEMS = 10_000
MAX_IMAGE_MIB = 20


class _ChatPart(Struct, gc=False):
    image_url: str | MediaUrl | None = None


class _ChatMessage(Struct, gc=False):
    content: str | list[_ChatPart] | None = None


_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_messages = msgspec.json.Decoder(list[_ChatMessage]).decode


def check_items(items: Sequence[InputItem], most: int, max_image_mib: int, *, size: int) -> None:
    """Raises RequestError for a Responses request of `size` bytes that holds more than it may."""
    _check_number(len(items), most, "input")
    if size <= max_image_mib << 20:
        return
    for number, item in enumerate(items):
        for name, parts in (("content", item.content), ("output", item.output)):
            if type(parts) is list:
                _check_images(parts, f"input[{number}].{name}", max_image_mib)


def check_messages(messages: Any, most: int, max_image_mib: int) -> None:
    """The same for the messages of a Chat Completions request, given as JSON; those that are small are not read."""
    raw = bytes(messages)
    if len(raw) > 2 * most:
        _check_number(len(decode_part(_decode_list, raw, "messages")), most, "messages")
    if len(raw) > max_image_mib << 20 and b'"image_url"' in raw:
        for number, message in enumerate(decode_part(_decode_messages, raw, "messages")):
            if type(message.content) is list:
                _check_images(message.content, f"messages[{number}].content", max_image_mib)


def _check_number(found: int, most: int, param: str) -> None:
    if found > most:
        raise RequestError(
            f"Invalid '{param}': at most {most} items are taken (max_input_items), got {found}.",
            param=param,
            code="array_above_max_length",
        )


def _check_images(parts: Iterable[Part | _ChatPart], where: str, max_image_mib: int) -> None:
    for number, part in enumerate(parts):
        given = part.image_url
        url = given.url if isinstance(given, MediaUrl) else given
        # Base64 takes four characters for three bytes.
        if url is not None and len(url) * 3 > (max_image_mib << 20) * 4 and url.startswith("data:"):
            raise RequestError(
                f"Invalid '{where}[{number}].image_url': the image is larger than {max_image_mib} MiB (max_image_mib).",
                param=f"{where}[{number}].image_url",
                code="image_too_large",
            )
