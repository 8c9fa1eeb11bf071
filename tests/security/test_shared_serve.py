"""A run that joins a Ray Serve of another run: it may be reached from further than this run asked for."""

from __future__ import annotations

import pytest

from local_vllm.config.schema import GlobalSettings
from local_vllm.errors import ConfigError
from local_vllm.runs.applications import _allowed
from local_vllm.runs.ingress import Ingress


def test_a_serve_that_listens_more_widely_than_this_run_asks_for_wants_keys_of_it_too() -> None:
    wide = Ingress("http://10.0.0.1:11000", on_head=False)
    with pytest.raises(ConfigError, match="listen on 10.0.0.1"):
        _allowed(wide, GlobalSettings())
    assert _allowed(wide, GlobalSettings(allow_unauthenticated=True)) == wide
    assert _allowed(wide, GlobalSettings(api_keys=["a-key"])) == wide
    assert _allowed(Ingress("http://127.0.0.1:11000", on_head=True), GlobalSettings()).on_head
