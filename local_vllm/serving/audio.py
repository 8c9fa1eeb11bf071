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
MAX_FILE_BYTES = 256 << 20


class AudioFolder:
    """`root` is the folder, None where no file may be read."""

    def __init__(self, root: str | None = None) -> None:
        self._root = Path(root).expanduser().resolve() if root is not None else None

    async def urls(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        """Raises RequestError for a file that is not there, or is not below the folder."""
        if not paths:
            return ()
        if self._root is None:
            raise _refused("Audio files are not read here: set 'audio_root', or send 'audio_data'.")
        root = self._root
        return await asyncio.to_thread(lambda: tuple([_data_url(root, path) for path in paths]))


def _data_url(root: Path, path: str) -> str:
    """Links are followed before the place is looked at."""
    try:
        file = (root / path).resolve()
        if not file.is_relative_to(root):
            raise _refused(f"The audio file '{path}' is not below 'audio_root'.")
        subtype = SUBTYPES.get(file.suffix.lower())
        if subtype is None:
            raise _refused(f"The audio file '{path}' ends in none of {', '.join(SUBTYPES)}.")
        if not file.is_file():
            raise _refused(f"There is no audio file '{path}' below 'audio_root'.")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise _refused(f"The audio file '{path}' is larger than {MAX_FILE_BYTES >> 20} MiB.")
        return f"data:audio/{subtype};base64,{base64.b64encode(file.read_bytes()).decode()}"
    except (OSError, ValueError, RuntimeError) as error:
        raise _refused(f"The audio file '{path}' cannot be read: {type(error).__name__}.") from error


def _refused(message: str) -> RequestError:
    return RequestError(message, param="metadata.audio_path", code="invalid_value")
