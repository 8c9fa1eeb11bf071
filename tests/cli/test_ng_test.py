"""`ng_test`: which parts there are, and that their tests are run, with pytest's own verdict."""

from __future__ import annotations

import pytest

from local_vllm.cli.test import known_parts, run
from local_vllm.config.schema import MODELS, REGISTRY

PASSING = "def test_it():\n    assert True\n"
FAILING = "def test_it():\n    assert False\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own(here, source: str) -> None:
    folder = here / "resources_servers" / "my_env" / "tests"
    folder.mkdir(parents=True)
    (folder / "test_my_env.py").write_text(source)


def test_every_kind_of_server_is_a_part_whose_tests_are_there(here):
    parts = known_parts(here)

    assert {f"{MODELS}/{name}" for name in REGISTRY[MODELS]} <= parts.keys()
    assert [str(place) for places in parts.values() for place in places if not place.exists()] == []


def test_without_a_part_it_lists_those_there_are(here, capsys):
    own(here, PASSING)

    assert run([]) == 0
    told = capsys.readouterr().out.split()
    assert {"responses_api_models/vllm_model", "resources_servers/my_env"} <= set(told)


@pytest.mark.parametrize(("source", "status"), [(PASSING, 0), (FAILING, 1)], ids=["pass", "fail"])
def test_the_tests_of_an_environment_of_ones_own_decide_the_exit_status(here, source, status):
    own(here, source)

    assert run(["+entrypoint=resources_servers/my_env"]) == status


def test_what_follows_two_dashes_goes_to_pytest(here, capfd):
    assert run(["+entrypoint=responses_api_models/vllm_model", "--", "--collect-only", "-q", "-k", "namespace"]) == 0
    assert "test_namespaces.py" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["+entrypoint=responses_api_models/vlm_model"], "did you mean `responses_api_models/vllm_model`?"),
        (["+entry=x"], "`+entry=x` means nothing here"),
        (["+entrypoint="], "means nothing here"),
    ],
)
def test_a_part_that_is_not_there_is_told_with_the_nearest_one(argv, told, capsys):
    assert run(argv) == 2
    assert told in capsys.readouterr().err
