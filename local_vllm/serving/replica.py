"""What the model servers of one replica (one process that answers HTTP) have in common.

Made where the process begins: in a Ray Serve replica, or around a bare uvicorn.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Mapping
from dataclasses import dataclass, field

from local_vllm.serving.calls import Calls
from local_vllm.serving.client import EngineClient, Timeouts, Transport
from local_vllm.serving.http_transport import HTTPTransport
from local_vllm.serving.requests import Limits
from local_vllm.serving.response_store import LocalStores, ResponseStore, Stores, StoreSetting
from local_vllm.serving.sessions import Sessions

YOUNG_OBJECTS = 20_000
# Of glibc's malloc.h. The threshold from which memory is mapped is at most 32 MiB there.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, MAPPED_BYTES = 128 << 20, 32 << 20


@dataclass(frozen=True, slots=True)
class Replica:
    """`secret` signs session cookies and is one for the whole deployment. `first` is where this replica
    begins to count new sessions: its number where there are several. `name` tells it from the others in metrics.
    """

    secret: bytes
    first: int = 0
    name: str = ""
    transport: Transport = field(default_factory=HTTPTransport)
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    stores: Stores = field(default_factory=LocalStores)

    def client(
        self,
        default_headers: Mapping[str, str] | None = None,
        *,
        timeouts: Timeouts | None = None,
        calls: Calls | None = None,
        server: str = "",
    ) -> EngineClient:
        return EngineClient(self.transport, timeouts or self.timeouts, default_headers, calls=calls, server=server)

    def sessions(self, server: str) -> Sessions:
        return Sessions(server, self.secret, first=self.first)

    def store(self, setting: StoreSetting) -> ResponseStore:
        return self.stores.store(setting)


def settle_memory() -> None:
    """Spares the garbage collector what was imported, and lets requests make more before it looks at them.

    Called once, when everything that stays has been made.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Leaves the memory of large bodies to the next ones: glibc gives it back to the system as soon as it is free, and to
    get it again is a page fault for each 4 KiB. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
