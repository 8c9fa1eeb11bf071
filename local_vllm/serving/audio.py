"""Audio files that a request names in its metadata, as data URLs. Only files below one folder are read."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

from local_vllm.errors import RequestError

# What an engine is told by the file's ending; it would take another one for what it is not.
SUBTYPES = {
    ".flac": "flac",
    ".m4a": "mp4",
    ".mp3": "mpeg",
    ".ogg": "ogg",
    ".opus": "opus",
    ".wav": "wav",
    ".webm": "webm",
}
MAX_BYTES = 64 << 20


class AudioFolder:
    """`root` is the folder, None where no file may be read. The files of one request may have `max_bytes` together,
    as data URLs.
    """

    def __init__(self, root: str | None = None, max_bytes: int = MAX_BYTES) -> None:
        self._root = Path(root).expanduser().resolve() if root is not None else None
        self._max_bytes = max_bytes

    async def urls(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        """Raises RequestError for a file that is not there, or is not below the folder, and for too much (413)."""
        if not paths:
            return ()
        if self._root is None:
            raise _refused("Audio files are not read here: set 'audio_root', or send 'audio_data'.")
        root = self._root
        return await asyncio.to_thread(_data_urls, root, paths, self._max_bytes)


def _data_urls(root: Path, paths: tuple[str, ...], max_bytes: int) -> tuple[str, ...]:
    """A file that is named several times is read once, and counts each time: the engine is sent all of them."""
    read: dict[str, str] = {}
    left = max_bytes
    for path in paths:
        if path not in read:
            read[path] = _data_url(root, path, left)
        left -= len(read[path])
        if left < 0:
            message = f"The audio files are larger than {max_bytes} bytes together, as data URLs."
            raise RequestError(message, status=413, param="metadata.audio_path", code="request_too_large")
    return tuple([read[path] for path in paths])


def _data_url(root: Path, path: str, most: int) -> str:
    """Links are followed before the place is looked at. Of a file of more than `most` bytes only the beginning."""
    try:
        file = (root / path).resolve()
        if not file.is_relative_to(root):
            raise _refused(f"The audio file '{path}' is not below 'audio_root'.")
        subtype = SUBTYPES.get(file.suffix.lower())
        if subtype is None:
            raise _refused(f"The audio file '{path}' ends in none of {', '.join(SUBTYPES)}.")
        if not file.is_file():
            raise _refused(f"There is no audio file '{path}' below 'audio_root'.")
        with file.open("rb") as opened:
            audio = opened.read(most + 1)
        return f"data:audio/{subtype};base64,{base64.b64encode(audio).decode()}"
    except (OSError, ValueError, RuntimeError) as error:
        raise _refused(f"The audio file '{path}' cannot be read: {type(error).__name__}.") from error


def _refused(message: str) -> RequestError:
    return RequestError(message, param="metadata.audio_path", code="invalid_value")
