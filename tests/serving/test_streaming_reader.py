"""Server-sent events are found in an engine's bytes, wherever the connection cut them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_vllm.serving.streams import EventReader


def read(*pieces: bytes) -> list[bytes]:
    reader = EventReader()
    return [data for piece in pieces for data in reader.feed(piece)] + reader.rest()


@pytest.mark.parametrize(
    ("stream", "found"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b": a comment\n\ndata: a\n\n", [b"a"]),
        (b"event: x\nid: 7\ndata: a\nretry: 5\n\n", [b"a"]),
        (b"data: {\ndata: }\n\n", [b"{\n}"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"\n\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"data: a\n\ndata: b\n", [b"a", b"b"]),
        (b"data\n\n", []),
        (b"", []),
    ],
)
def test_the_data_of_events_is_found(stream: bytes, found: list[bytes]) -> None:
    assert read(stream) == found
    assert read(*[stream[n : n + 1] for n in range(len(stream))]) == found


def test_an_event_is_there_as_soon_as_its_last_byte_is() -> None:
    reader = EventReader()
    assert reader.feed(b"data: a\n") == []
    assert reader.feed(b"\ndata: b") == [b"a"]
    assert reader.feed(b"\r\n\r") == [b"b"]
    assert reader.feed(b"\n") == []


LINE = st.binary(min_size=1, max_size=9).filter(lambda line: not {10, 13} & set(line))
LINES = st.lists(LINE, min_size=1, max_size=2)
NOISE = st.sampled_from([b"", b": hello", b"event: x", b"id: 1"])


@given(
    st.lists(st.tuples(NOISE, LINES), max_size=5),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_bytes_cut_anywhere_hold_the_same_events(
    events: list[tuple[bytes, list[bytes]]], end: bytes, cuts: list[int]
) -> None:
    stream = b""
    for noise, lines in events:
        stream += (noise + end if noise else b"") + b"".join([b"data: " + line + end for line in lines]) + end
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    pieces = [stream[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]
    assert read(*pieces) == [b"\n".join(lines) for _, lines in events]
