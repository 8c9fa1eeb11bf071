"""What stands inside an input item: its text, images, audio and video, as chat's content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from local_vllm.errors import RequestError
from local_vllm.protocol.errors import missing, one_of
from local_vllm.protocol.request import MediaUrl, Part

Content = str | list[dict[str, Any]]

_URL_SCHEMES = ("http://", "https://", "data:", "file://")
_INPUT_PARTS = ("input_text", "input_image", "input_audio", "input_video")
_ASSISTANT_PARTS = ("output_text", "refusal")


def input_content(content: str | list[Part], where: str) -> Content:
    """Text alone stays one string; several parts stay parts, and the engine decides how its template joins
    them. Raises RequestError that names the part at fault.
    """
    if isinstance(content, str):
        return content
    if len(content) == 1 and content[0].type == "input_text":
        return _text(content[0], f"{where}[0]")
    return [_chat_part(part, f"{where}[{number}]") for number, part in enumerate(content)]


def assistant_text(content: str | list[Part], where: str) -> str:
    """An assistant's texts and refusals as one text."""
    if isinstance(content, str):
        return content
    return "".join([_assistant_part(part, f"{where}[{number}]") for number, part in enumerate(content)])


def with_audio(content: Content | None, urls: Sequence[str]) -> Content:
    """The content of a user's message with audio before all else."""
    audio: list[dict[str, Any]] = [{"type": "audio_url", "audio_url": {"url": url}} for url in urls]
    if isinstance(content, str):
        return [*audio, {"type": "text", "text": content}]
    return [*audio, *(content or ())]


def _chat_part(part: Part, where: str) -> dict[str, Any]:
    match part.type:
        case "input_text":
            return {"type": "text", "text": _text(part, where)}
        case "input_image":
            return {"type": "image_url", "image_url": _image(part, where)}
        case "input_video" | "video_url":
            return {"type": "video_url", "video_url": {"url": _url(part.video_url, f"{where}.video_url")}}
        case "audio_url":
            return {"type": "audio_url", "audio_url": {"url": _url(part.audio_url, f"{where}.audio_url")}}
        case "input_audio" if part.input_audio is not UNSET:
            return {"type": "input_audio", "input_audio": part.input_audio}
        case "input_file":
            raise RequestError(
                "Files are not supported here: send text or images.",
                param=f"{where}.type",
                code="unsupported_value",
            )
    raise one_of(part.type, _INPUT_PARTS, f"{where}.type")


def _text(part: Part, where: str) -> str:
    if part.text is None:
        raise missing(f"{where}.text")
    return part.text


def _image(part: Part, where: str) -> dict[str, str]:
    if part.file_id is not None and part.image_url is None:
        raise RequestError(
            "There is no file store here: send 'image_url'.",
            param=f"{where}.file_id",
            code="unsupported_value",
        )
    image = {"url": _url(part.image_url, f"{where}.image_url")}
    if part.detail in ("low", "high"):
        image["detail"] = part.detail
    return image


def _url(given: str | MediaUrl | None, where: str) -> str:
    url = given.url if isinstance(given, MediaUrl) else given
    if url is None:
        raise missing(where)
    if not url.startswith(_URL_SCHEMES):
        raise RequestError(
            f"Invalid '{where}': expected a URL or a data URL.", param=where, code="invalid_value"
        )
    return url


def _assistant_part(part: Part, where: str) -> str:
    if part.type not in _ASSISTANT_PARTS:
        raise one_of(part.type, _ASSISTANT_PARTS, f"{where}.type")
    text = part.text if part.type == "output_text" else part.refusal
    if text is None:
        raise missing(f"{where}.{'text' if part.type == 'output_text' else 'refusal'}")
    return text
