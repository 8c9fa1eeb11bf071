"""Whatever goes wrong with the Hub or the disk is one line that says what to change."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fetching_process import fetching_process, need_mounts
from stand_in_hub import Repository, StandInHub

from local_vllm.engine.fetch import Fetch
from local_vllm.engine.hub import HubAccess, Patience, find_snapshot
from local_vllm.engine.snapshot import WantedModel
from local_vllm.errors import EngineStartError

TINY = WantedModel("tiny-org/tiny-model")
HURRIED = Patience(unreachable_s=(0.05,), busy_s=(0.05, 0.05), lost_s=(0.05,), no_progress_s=20)


def refusal(access: HubAccess, cache: Path, wanted: WantedModel = TINY) -> str:
    """The message of a fetch that cannot succeed."""
    with pytest.raises(EngineStartError) as refused:
        list(Fetch(find_snapshot(wanted, cache, access, HURRIED), cache, access, HURRIED).progress())
    message = str(refused.value)
    assert "\n" not in message
    return message


def close(hub: StandInHub, **how: object) -> None:
    hub.repositories[TINY.model] = replace(hub.repositories[TINY.model], **how)


def test_a_gated_model_without_a_token_says_where_to_accept_and_what_to_set(
    hub: StandInHub, cache: Path
) -> None:
    close(hub, gated=frozenset())
    message = refusal(HubAccess(hub.url), cache)
    assert f"is gated: accept its terms at {hub.url}/{TINY.model}" in message
    assert "HF_TOKEN (or hf_token in env.yaml)" in message


def test_a_gated_model_with_the_token_of_another_account_says_so(hub: StandInHub, cache: Path) -> None:
    close(hub, gated=frozenset())
    assert "the account of this token has no access: accept" in refusal(HubAccess(hub.url, "hf_good"), cache)


def test_a_gated_model_comes_with_the_right_token(hub: StandInHub, cache: Path) -> None:
    close(hub, gated=frozenset({"hf_good"}), private=frozenset({"hf_good"}))
    access = HubAccess(hub.url, "hf_good")
    snapshot = find_snapshot(TINY, cache, access, HURRIED)
    list(Fetch(snapshot, cache, access, HURRIED).progress())
    assert snapshot.missing(cache) == []


def test_a_wrong_or_expired_token_is_named(hub: StandInHub, cache: Path) -> None:
    message = refusal(HubAccess(hub.url, "hf_old"), cache)
    assert "refuses the token (401)" in message
    assert "hf_old" not in message


@pytest.mark.parametrize("token", [None, "hf_good"])
@pytest.mark.parametrize(
    ("asked", "meant"), [("tiny-org/tiny-modle", TINY.model), ("tiny-orc/tiny-model", TINY.model)]
)
def test_a_wrong_name_is_answered_with_the_nearest(
    hub: StandInHub, cache: Path, token: str | None, asked: str, meant: str
) -> None:
    message = refusal(HubAccess(hub.url, token), cache, WantedModel(asked))
    assert f"there is no model {asked} at {hub.url}" in message
    assert f"did you mean {meant}?" in message
    assert ("needs HF_TOKEN" in message) == (token is None)


def test_a_revision_that_is_not_there_is_named(hub: StandInHub, cache: Path) -> None:
    assert "has no revision `v9`" in refusal(HubAccess(hub.url), cache, replace(TINY, revision="v9"))


def test_a_model_without_weights_that_vllm_loads_says_what_it_has(hub: StandInHub, cache: Path) -> None:
    hub.repositories["org/quantized"] = Repository({"config.json": b"{}", "model-Q4.gguf": bytes(2 << 20)})
    message = refusal(HubAccess(hub.url), cache, WantedModel("org/quantized"))
    assert "no weights that vLLM loads" in message
    assert "it has model-Q4.gguf" in message


def test_a_hub_that_refuses_connections_is_named(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    message = refusal(HubAccess(address), cache)
    assert f"{address} cannot be reached" in message
    assert "Connection refused" in message
    assert "HF_ENDPOINT" in message


def test_a_hub_whose_name_nobody_knows_is_named(cache: Path) -> None:
    assert "http://hub.invalid cannot be reached" in refusal(HubAccess("http://hub.invalid"), cache)


def test_an_endpoint_without_a_scheme_is_told(cache: Path) -> None:
    assert "HF_ENDPOINT is `hub.example`: write it with http://" in refusal(HubAccess("hub.example"), cache)


def test_a_certificate_that_is_not_accepted_is_told(hub: StandInHub, cache: Path) -> None:
    message = refusal(HubAccess(hub.url.replace("http:", "https:")), cache)
    assert "SSL_CERT_FILE" in message


def test_offline_without_the_model_says_how_to_get_it(hub: StandInHub, cache: Path) -> None:
    message = refusal(HubAccess(hub.url, offline=True), cache)
    assert f"is not (whole) in {cache}, and HF_HUB_OFFLINE is set" in message
    assert f"HF_HOME={cache.parent} hf download {TINY.model}" in message
    assert hub.requests == []


def test_offline_with_half_a_model_is_no_model(hub: StandInHub, cache: Path) -> None:
    access = HubAccess(hub.url)
    snapshot = find_snapshot(TINY, cache, access, HURRIED)
    list(Fetch(snapshot, cache, access, HURRIED).progress())
    (snapshot.folder(cache) / "model.safetensors").unlink()
    assert "is not (whole) in" in refusal(replace(access, offline=True), cache)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (429, "too many requests, again and again"),
        (503, "503 for tiny-org/tiny-model again and again"),
        (418, "418"),
    ],
)
def test_a_hub_that_goes_on_refusing_is_told_after_some_attempts(
    hub: StandInHub, cache: Path, status: int, says: str
) -> None:
    hub.faults.answers = [status] * 50
    assert says in refusal(HubAccess(hub.url), cache)
    assert len(hub.requests) == (1 if status == 418 else 3)


def test_a_hub_that_asks_to_wait_is_given_the_time(hub: StandInHub, cache: Path) -> None:
    hub.faults.answers, hub.faults.retry_after = [429], "1"
    begun = time.monotonic()
    find_snapshot(TINY, cache, HubAccess(hub.url), replace(HURRIED, busy_s=(0.01, 2.0)))
    assert time.monotonic() - begun > 1
    assert len(hub.requests) == 2


def test_a_disk_that_is_too_small_is_told_before_anything_comes(hub: StandInHub, cache: Path) -> None:
    need_mounts()
    cache.mkdir(parents=True)
    process = fetching_process(hub, cache, f"mount -t tmpfs -o size=3m tmpfs {cache}")
    _, errors = process.communicate(timeout=60)
    assert re.search(
        rf"refused: {TINY.model} needs 0.00[3-5]\d+ GB more in {cache}, where 0.003\d* GB are free", errors
    )
    assert hub.bytes_served == 0


def test_a_disk_that_fills_up_in_the_middle_is_told(hub: StandInHub, cache: Path) -> None:
    need_mounts()
    cache.mkdir(parents=True)
    hub.faults.bytes_per_s = 2_000_000
    fill = "(cache / 'filler').exists() or (cache / 'filler').write_bytes(bytes(4 << 20))"
    process = fetching_process(hub, cache, f"mount -t tmpfs -o size=7m tmpfs {cache}", fill)
    _, errors = process.communicate(timeout=60)
    assert f"refused: the disk is full in {cache} while {TINY.model} was fetched" in errors


def test_a_cache_that_cannot_be_written_is_told(hub: StandInHub, cache: Path) -> None:
    need_mounts()
    cache.mkdir(parents=True)
    process = fetching_process(hub, cache, f"mount -t tmpfs -o ro tmpfs {cache}")
    _, errors = process.communicate(timeout=60)
    assert f"refused: the cache {cache} cannot be written" in errors
    assert "read-only file system" in errors
