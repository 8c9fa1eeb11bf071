"""What signs session cookies, and makes runs' own keys: one secret for all runs of this user on this machine, so that
cookies outlive a run.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from local_vllm.runs.record import state_folder

SECRET_BYTES = 32


def session_secret() -> bytes:
    """The secret, made by whoever needs it first. Only its owner may read the file."""
    path = state_folder() / "session_secret"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _make(path)
    return path.read_bytes()


def run_key(run_id: str) -> str:
    """The key that opens a run to itself and to the commands of its owner; it follows from the secret."""
    return "lv-" + hmac.digest(session_secret(), f"client key of run {run_id}".encode(), "sha256").hex()


def _make(path: Path) -> None:
    """Whole or not at all, and never over another's that was made at the same moment."""
    descriptor, new = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
    finally:
        os.unlink(new)
