"""The last test of this folder: it ends the run that the others share."""

from __future__ import annotations

import pytest
from ng_run_process import GONE_WITHIN_S, NgRun, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def test_a_killed_run_leaves_no_process_and_no_shared_memory(run: NgRun) -> None:
    assert run.processes()
    assert run.named("haproxy")
    run.process.kill()
    run.process.wait(5)
    assert until(lambda: not [*run.processes(), *run.segments()], GONE_WITHIN_S), run.leftovers()
