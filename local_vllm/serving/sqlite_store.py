"""A response store in an SQLite file. All of SQLite happens in one thread of its own, in the order in which
it was asked for, so that nothing waits for a disk but those who read.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from local_vllm.errors import ConfigError, Problem
from local_vllm.protocol.stored import Stored
from local_vllm.serving.memory_store import ENTRY_BYTES, chain_of
from local_vllm.serving.replies import logger

T = TypeVar("T")

BUSY_TIMEOUT_S = 10.0
# Other processes write to the file too: what it holds is counted afresh after so many writes of our own.
COUNT_AFTER_WRITES = 500
# Responses that wait to be written hold memory: beyond this the disk is too slow, and they are dropped.
MAX_WAITING_BYTES = 256 << 20

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, previous TEXT, request BLOB NOT NULL, response BLOB NOT NULL,
    bytes INTEGER NOT NULL, used INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used, bytes);
"""
_INSERT = "INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, (SELECT coalesce(max(used), 0) + 1 FROM responses))"
_USE = "UPDATE responses SET used = (SELECT max(used) + 1 FROM responses) WHERE id = ?"
_TOTAL = "SELECT coalesce(sum(bytes), 0) FROM responses"
_DROP_OLDEST = "DELETE FROM responses WHERE id = (SELECT id FROM responses ORDER BY used LIMIT 1) RETURNING bytes"


class SqliteStore:
    """Keeps responses in a file, which several processes of one machine may have open."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self._path = Path(path).expanduser()
        self._max_bytes = max_bytes
        self._waiting_bytes = 0
        self._bytes = 0
        self._writes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="response-store")
        self._database = self._thread.submit(self._connect).result()

    def put(self, stored: Stored) -> None:
        if stored.size > self._max_bytes:
            logger.warning("A response of %d bytes is larger than the response store.", stored.size)
        elif self._waiting_bytes > MAX_WAITING_BYTES:
            logger.warning("%s is written too slowly: a response was not kept.", self._path)
        else:
            self._waiting_bytes += stored.size
            self._thread.submit(self._write, stored)

    async def chain(self, response_id: str) -> list[Stored]:
        return await self._in_thread(lambda: chain_of(response_id, self._use))

    async def get(self, response_id: str) -> Stored | None:
        return await self._in_thread(lambda: self._use(response_id))

    async def delete(self, response_id: str) -> bool:
        return await self._in_thread(lambda: self._delete(response_id))

    async def close(self) -> None:
        """Waits until everything is written."""
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """The same for those who may block. A store that has ended stays so."""
        with contextlib.suppress(RuntimeError):
            self._thread.submit(self._database.close).result()
        self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # ---- in the thread

    def _connect(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)  # whose conversations these are is nobody else's business
            database = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            problem = f"cannot use {self._path} as an SQLite file ({error}); name another file"
            raise ConfigError([Problem("response_store", problem)]) from error
        return database

    def _write(self, stored: Stored) -> None:
        try:
            with self._database as database:
                cost = stored.size + ENTRY_BYTES
                database.execute(
                    _INSERT, (stored.id, stored.previous, stored.request, stored.response, cost)
                )
                self._bytes += cost
                self._drop_oldest(database)
        except sqlite3.Error as error:
            logger.warning("%s: a response was not kept: %s", self._path, error)
        finally:
            self._waiting_bytes -= stored.size

    def _drop_oldest(self, database: sqlite3.Connection) -> None:
        if self._writes % COUNT_AFTER_WRITES == 0:
            self._bytes = database.execute(_TOTAL).fetchone()[0]
        self._writes += 1
        while self._bytes > self._max_bytes:
            dropped = database.execute(_DROP_OLDEST).fetchone()
            if dropped is None:
                return
            self._bytes -= dropped[0]

    def _use(self, response_id: str) -> Stored | None:
        with self._database as database:
            columns = "SELECT id, previous, request, response FROM responses WHERE id = ?"
            row = database.execute(columns, (response_id,)).fetchone()
            if row is not None:
                database.execute(_USE, (response_id,))
        return Stored(*row) if row is not None else None

    def _delete(self, response_id: str) -> bool:
        with self._database as database:
            deleting = database.execute("DELETE FROM responses WHERE id = ? RETURNING bytes", (response_id,))
            dropped = deleting.fetchall()
        self._bytes -= sum(cost for (cost,) in dropped)
        return bool(dropped)
