"""Fetching a model into the cache, against a server that speaks the Hub's protocol."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fetching_process import fetching_process, need_mounts
from stand_in_hub import StandInHub

from local_vllm.engine.fetch import Fetch
from local_vllm.engine.hub import HubAccess, Patience, find_snapshot
from local_vllm.engine.snapshot import Snapshot, WantedModel
from local_vllm.engine.spec import Download
from local_vllm.errors import EngineStartError

TINY = WantedModel("tiny-org/tiny-model")
LOADED = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
HURRIED = Patience(unreachable_s=(0.05,), busy_s=(0.05, 0.05), lost_s=(0.05,), no_progress_s=20)


def fetched(hub: StandInHub, cache: Path, patience: Patience = HURRIED, **access: object) -> Snapshot:
    reached = HubAccess(hub.url, **access)
    snapshot = find_snapshot(TINY, cache, reached, patience)
    list(Fetch(snapshot, cache, reached, patience).progress())
    return snapshot


def check_whole(snapshot: Snapshot, hub: StandInHub, cache: Path) -> None:
    contents = hub.repositories[TINY.model].files
    for file in snapshot.files:
        assert (snapshot.folder(cache) / file.path).read_bytes() == contents[file.path]


def size_of(hub: StandInHub) -> int:
    """The bytes of all that is loaded."""
    return sum(len(content) for name, content in hub.repositories[TINY.model].files.items() if name in LOADED)


def partial_of(hub: StandInHub, cache: Path, name: str = "model.safetensors") -> Path:
    etag = hub.repositories[TINY.model].etag(name)
    return cache / "models--tiny-org--tiny-model" / "blobs" / f"{etag}.incomplete"


def wait_for_bytes(hub: StandInHub, size: int) -> None:
    deadline = time.monotonic() + 20
    while hub.bytes_of["model.safetensors"] < size:
        assert time.monotonic() < deadline, "the download has not begun"
        time.sleep(0.01)


def test_what_vllm_loads_is_fetched_once_and_nothing_else(hub: StandInHub, cache: Path) -> None:
    snapshot = fetched(hub, cache)
    assert {file.path for file in snapshot.files} == hub.bytes_of.keys() == LOADED
    check_whole(snapshot, hub, cache)
    assert all(hub.bytes_of[file.path] == file.size for file in snapshot.files)
    assert not list(cache.rglob("*.incomplete"))


def test_a_second_fetch_asks_what_there_is_and_gets_nothing_more(hub: StandInHub, cache: Path) -> None:
    fetched(hub, cache)
    hub.forget()
    fetched(hub, cache)
    assert hub.requests == ["GET /api/models/tiny-org/tiny-model"]


def test_the_token_is_not_shown_to_where_large_files_lie(hub: StandInHub, cache: Path) -> None:
    fetched(hub, cache, token="hf_good")
    assert not hub.authorized_elsewhere


def test_a_model_that_was_renamed_is_found_with_its_token(hub: StandInHub, cache: Path) -> None:
    hub.renamed["tiny-org/former-name"] = TINY.model
    hub.repositories[TINY.model].gated = frozenset({"hf_good"})
    access, former = HubAccess(hub.url, "hf_good"), WantedModel("tiny-org/former-name")
    snapshot = find_snapshot(former, cache, access, HURRIED)
    list(Fetch(snapshot, cache, access, HURRIED).progress())
    check_whole(snapshot, hub, cache)


def test_a_proxy_of_the_environment_carries_all_of_it(hub: StandInHub, cache: Path) -> None:
    process = fetching_process(
        hub,
        cache,
        endpoint="http://hub.invalid",
        HTTP_PROXY=hub.url,
        http_proxy=hub.url,
        NO_PROXY="",
        no_proxy="",
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert hub.bytes_served == size_of(hub)


def test_offline_nothing_is_asked_when_the_cache_is_whole(hub: StandInHub, cache: Path) -> None:
    online = fetched(hub, cache)
    hub.forget()
    offline = fetched(hub, cache, offline=True)
    assert offline.commit == online.commit
    assert {file.path for file in offline.files} == LOADED
    assert hub.requests == []


def test_a_hub_that_is_gone_does_not_matter_when_the_cache_is_whole(hub: StandInHub, cache: Path) -> None:
    fetched(hub, cache)
    hub.stop()
    snapshot = fetched(hub, cache)
    assert snapshot.missing(cache) == []
    assert "cannot be reached" in snapshot.notice


def test_connections_that_are_cut_are_taken_up_where_they_ended(hub: StandInHub, cache: Path) -> None:
    hub.faults.cuts = [300_000, 100_000, 1_000, 500_000]
    check_whole(fetched(hub, cache), hub, cache)
    assert hub.faults.cuts == []
    assert hub.bytes_of["model.safetensors"] == len(hub.repositories[TINY.model].files["model.safetensors"])


def test_a_hub_that_goes_away_and_comes_back_is_waited_for(hub: StandInHub, cache: Path) -> None:
    hub.faults.bytes_per_s = 3_000_000
    threading.Timer(0.3, hub.stop).start()
    threading.Timer(1.0, hub.start).start()
    patience = Patience(lost_s=(0.1,), no_progress_s=20)
    check_whole(fetched(hub, cache, patience), hub, cache)


def test_a_killed_process_leaves_what_it_has_and_the_next_goes_on_there(hub: StandInHub, cache: Path) -> None:
    hub.faults.bytes_per_s = 1_000_000
    process = fetching_process(hub, cache)
    wait_for_bytes(hub, 700_000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = partial_of(hub, cache).stat().st_size
    assert kept > 300_000
    hub.faults.bytes_per_s = 0
    time.sleep(0.2)
    hub.forget()
    check_whole(fetched(hub, cache), hub, cache)
    assert (
        hub.bytes_of["model.safetensors"]
        == len(hub.repositories[TINY.model].files["model.safetensors"]) - kept
    )


def test_two_processes_that_want_the_same_fetch_it_once(hub: StandInHub, cache: Path) -> None:
    hub.faults.bytes_per_s = 200_000
    processes = [fetching_process(hub, cache) for _ in range(2)]
    seen = [[process.stdout.readline() for _ in range(3)] for process in processes]
    assert all(len(set(lines)) > 1 for lines in seen), "both see the progress"
    hub.faults.bytes_per_s = 0
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert hub.bytes_served == size_of(hub)


def test_a_part_with_a_wrong_content_is_thrown_away(hub: StandInHub, cache: Path) -> None:
    partial = partial_of(hub, cache)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 500_000)
    check_whole(fetched(hub, cache), hub, cache)


def test_a_server_that_sends_the_whole_file_for_a_part_is_understood(hub: StandInHub, cache: Path) -> None:
    hub.faults.cuts, hub.faults.ignores_ranges = [300_000], True
    check_whole(fetched(hub, cache), hub, cache)
    whole = len(hub.repositories[TINY.model].files["model.safetensors"])
    assert hub.bytes_of["model.safetensors"] == 300_000 + whole


def test_a_mirror_that_names_contents_otherwise_is_left_to_huggingface_hub(
    hub: StandInHub, cache: Path
) -> None:
    hub.faults.strange_etags = True
    check_whole(fetched(hub, cache), hub, cache)
    assert hub.bytes_of["model.safetensors"] == len(hub.repositories[TINY.model].files["model.safetensors"])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_in_trouble_is_asked_again(hub: StandInHub, cache: Path, status: int) -> None:
    hub.faults.answers = [status]
    snapshot = find_snapshot(TINY, cache, HubAccess(hub.url), HURRIED)
    hub.faults.answers = [status, status]
    list(Fetch(snapshot, cache, HubAccess(hub.url), HURRIED).progress())
    check_whole(snapshot, hub, cache)


def test_a_file_that_is_refused_for_a_while_comes_in_the_end(hub: StandInHub, cache: Path) -> None:
    hub.faults.bytes_per_s, hub.faults.cuts = 2_000_000, [600_000]
    snapshot = find_snapshot(TINY, cache, HubAccess(hub.url), HURRIED)
    fetching = Fetch(snapshot, cache, HubAccess(hub.url), HURRIED).progress()
    next(fetching)
    wait_for_bytes(hub, 100_000)
    hub.faults.answers = [503] * 5
    list(fetching)
    check_whole(snapshot, hub, cache)
    assert hub.faults.answers == []


def test_progress_grows_from_nothing_to_all_with_a_speed(hub: StandInHub, cache: Path) -> None:
    hub.faults.bytes_per_s = 1_500_000
    snapshot = find_snapshot(TINY, cache, HubAccess(hub.url), HURRIED)
    told: list[Download] = list(Fetch(snapshot, cache, HubAccess(hub.url), HURRIED).progress())
    sizes = [download.bytes_done for download in told]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == told[-1].bytes_total == sum(file.size for file in snapshot.files)
    assert (told[-1].files_done, told[-1].files_total) == (len(snapshot.files), len(snapshot.files))
    assert 500_000 < max(download.bytes_per_s for download in told) < 6_000_000


def test_leaving_early_ends_the_download(hub: StandInHub, cache: Path) -> None:
    hub.faults.bytes_per_s = 500_000
    snapshot = find_snapshot(TINY, cache, HubAccess(hub.url), HURRIED)
    fetching: Iterator[Download] = Fetch(snapshot, cache, HubAccess(hub.url), HURRIED).progress()
    next(fetching)
    wait_for_bytes(hub, 100_000)
    fetching.close()
    time.sleep(0.3)
    served = hub.bytes_served
    time.sleep(0.4)
    assert hub.bytes_served - served <= 1 << 17


def test_without_a_byte_for_too_long_it_is_given_up(
    hub: StandInHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.faults.stalls = True
    with pytest.raises(EngineStartError, match=r"not a byte of tiny-org/tiny-model .* for 1 s.*Timeout"):
        fetched(hub, cache, Patience(lost_s=(0.05,), no_progress_s=1.4))


def test_a_whole_cache_that_cannot_be_written_serves(hub: StandInHub, cache: Path) -> None:
    need_mounts()
    fetched(hub, cache)
    read_only = f"mount --bind {cache} {cache} && mount -o remount,bind,ro {cache}"
    process = fetching_process(hub, cache, read_only)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
