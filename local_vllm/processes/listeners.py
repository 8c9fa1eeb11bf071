"""Which process listens on a port of this machine."""

from __future__ import annotations

import psutil


def listening_pids(port: int) -> set[int]:
    """The processes that listen on TCP `port`, as far as this user may see them."""
    return {
        connection.pid
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid
    }
