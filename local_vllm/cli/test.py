"""`ng_test`: run the tests of one part, which pytest does; without a part, say which there are."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_vllm.config import lookup
from local_vllm.config.apps import AppError, AppFolders, load_app, shipped_apps
from local_vllm.config.nearest import did_you_mean
from local_vllm.config.schema import AGENTS, KINDS, MODELS, RESOURCES
from local_vllm.errors import ConfigError, LocalVLLMError, Problem

USAGE = """\
ng_test runs the tests of one part of the house, or of an environment of your own.

  ng_test                                                   the parts that there are
  ng_test +entrypoint=responses_api_models/vllm_model       the tests of that part
  ng_test +entrypoint=resources_servers/my_env              those in ./resources_servers/my_env/tests
  ng_test +entrypoint=... -- -x -k weather                  what follows -- goes to pytest

Those of local_vllm_model start real engines, which takes minutes.
Exit status: 0 all passed, 2 the command line is wrong, 1 a test failed or none could be run.
"""

# What holds the promises of each kind of model server, below tests/.
TESTS_OF_MODELS: Mapping[str, tuple[str, ...]] = {
    "local_vllm_model": ("plan", "cpu", "engine"),
    "local_vllm_model_proxy": ("serving/test_model_kinds.py",),
    "openai_model": ("serving/test_model_kinds.py", "serving/test_native_responses.py"),
    "vllm_model": ("protocol", "serving"),
}


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    words, to_pytest = _split(argv)
    if {"-h", "--help"} & set(words):
        print(USAGE)
        return 0
    try:
        parts = known_parts(Path.cwd())
        entrypoint = _entrypoint(words)
        if entrypoint is None:
            print("Parts, as ng_test +entrypoint=<part>:", *(f"  {part}" for part in parts), sep="\n")
            return 0
        return _pytest(_tests_of(entrypoint, parts), to_pytest)
    except ConfigError as error:
        print(f"ng_test: {error}", file=sys.stderr)
        return 2
    except LocalVLLMError as error:
        print(f"ng_test: {error}", file=sys.stderr)
        return 1


def known_parts(cwd: Path) -> dict[str, tuple[Path, ...]]:
    """Part -> its test files and folders: those of the checkout, and those of environments below `cwd`."""
    parts = dict(_parts_here(cwd))
    if checkout := lookup.repository():
        tests = checkout / "tests"
        for name, places in TESTS_OF_MODELS.items():
            parts[f"{MODELS}/{name}"] = tuple(tests / place for place in places)
        for name in shipped_apps():
            parts[f"{_kind(name)}/{name}"] = _tests_of_app(tests / "environments", name)
    return dict(sorted(parts.items()))


def _tests_of_app(tests: Path, name: str) -> tuple[Path, ...]:
    """Those of its own, where it has a file of its own; all of the shipped environments otherwise."""
    own = tests / f"test_{name}.py"
    return (own,) if own.is_file() else tuple(tests / f"test_{part}.py" for part in ("shipped_environments", "verdicts"))


def _parts_here(cwd: Path) -> list[tuple[str, tuple[Path, ...]]]:
    folders = (folder for kind in KINDS for folder in sorted(cwd.glob(f"{kind}/*/tests")))
    return [(folder.parent.relative_to(cwd).as_posix(), (folder,)) for folder in folders]


def _kind(name: str) -> str:
    for kind in (AGENTS, RESOURCES):
        try:
            load_app(AppFolders(lookup.environments()).find(kind, name), kind)
        except AppError:
            continue
        return kind
    raise LocalVLLMError(f"{lookup.environments() / name} is neither an agent nor a resources server")


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def _entrypoint(words: Sequence[str]) -> str | None:
    entrypoint = None
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        if key != "entrypoint" or not equals or not value:
            raise ConfigError([Problem("", f"`{word}` means nothing here; write +entrypoint=<part>, or --help")])
        entrypoint = value.strip("/")
    return entrypoint


def _tests_of(entrypoint: str, parts: Mapping[str, tuple[Path, ...]]) -> tuple[Path, ...]:
    if entrypoint not in parts:
        where = "" if lookup.repository() else "; the tests of the package itself come with a checkout of it"
        message = f"there is no part {entrypoint} with tests{did_you_mean(entrypoint, parts)}{where}"
        raise ConfigError([Problem("entrypoint", message)])
    return parts[entrypoint]


def _pytest(places: Sequence[Path], further: Sequence[str]) -> int:
    if importlib.util.find_spec("pytest") is None:
        raise LocalVLLMError("pytest is not installed in this Python: pip install 'local_vllm[test]'")
    command = [sys.executable, "-m", "pytest", *map(str, places), *further]
    return min(subprocess.run(command, cwd=_root(places), check=False).returncode, 1)


def _root(places: Sequence[Path]) -> Path:
    """Where pytest finds the settings that the tests were written for."""
    checkout = lookup.repository()
    if checkout and all(place.is_relative_to(checkout) for place in places):
        return checkout
    return Path.cwd()


if __name__ == "__main__":
    main()
