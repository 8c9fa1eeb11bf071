"""Which config files a run reads, and their trees in merge order: the chosen ones and those that they name.

How one file is parsed is compose.py's (it hands in `load`); where files are looked for is lookup.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_vllm.config import lookup
from local_vllm.config.findings import Findings
from local_vllm.config.names import is_server
from local_vllm.config.schema import MODELS
from local_vllm.errors import ConfigError, Problem

QUICKSTART = "quickstart.yaml"
GENERIC = "local_vllm_model.yaml"
ENV_FILE = "env.yaml"

Trees = dict[Path, dict[str, Any]]
Load = Callable[[Path], dict[str, Any]]


def chosen_files(
    given: Mapping[str, Any], env: Mapping[str, Any], load: Load, findings: Findings
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of the config files to read, and variables that go with that choice.

    `given` are the top-level keys of the command line, `env` those of env.yaml.
    """
    model = given.get("model")
    if "config_paths" in given or "config_paths" in env:
        if model is not None:
            findings.add("model", "chooses a shipped config, and so does config_paths: give one of the two")
        return _names(given.get("config_paths", env.get("config_paths")), "config_paths", findings), {}
    if model is None:
        return (QUICKSTART,), {}
    return _files_of_model(str(model), load, findings)


def _files_of_model(model: str, load: Load, findings: Findings) -> tuple[tuple[str, ...], dict[str, Any]]:
    if f"{model}.yaml" in lookup.shipped_names():
        return (f"{model}.yaml",), {}
    root = lookup.shipped_configs()
    matches = [name for name in lookup.shipped_names() if _serves(load(root / name), model)]
    if not matches:
        findings.notices.append(f"no config is shipped for {model}: the generic {GENERIC} serves it")
        return (GENERIC,), {"policy_model_name": model}
    chosen = next((name for name in matches if "medium" in name), matches[0])
    if len(matches) > 1:
        listed = ", ".join(f"+model={name.removesuffix('.yaml')}" for name in matches)
        findings.notices.append(f"{model} is served by {chosen}; shipped are {listed}")
    return (chosen,), {}


def _serves(tree: Mapping[str, Any], model: str) -> bool:
    return any(
        isinstance(settings, Mapping) and settings.get("model") == model
        for server in tree.values()
        if is_server(server)
        for settings in (server.get(MODELS) or {}).values()
    )


def _names(value: Any, path: str, findings: Findings) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        findings.add(path, f"must be a list of files, such as [a.yaml,b.yaml], not {value!r}")
        findings.incomplete = True
        return ()
    return tuple(name.strip() for name in names if name.strip())


def read_files(names: Sequence[str], cwd: Path, load: Load, findings: Findings) -> Trees:
    """The files in merge order: each after those that it names itself; one named twice counts once."""
    found: Trees = {}
    _Reader(cwd, load, found, findings).read(names, "config_paths", ())
    return found


@dataclass(frozen=True, slots=True)
class _Reader:
    cwd: Path
    load: Load
    found: Trees
    findings: Findings

    def read(self, names: Sequence[str], path: str, trail: tuple[Path, ...]) -> None:
        """Reads files that were named at `path`, by the last file of `trail` if there is one."""
        folders = (*(file.parent for file in trail[-1:]), self.cwd)
        for name in names:
            try:
                self.read_one(lookup.find_file(name, folders), path, trail)
            except (lookup.FileNotFound, ConfigError) as error:
                self.findings.incomplete = True
                fresh = error.problems if isinstance(error, ConfigError) else [Problem(path, str(error))]
                self.findings.problems += fresh

    def read_one(self, file: Path, path: str, trail: tuple[Path, ...]) -> None:
        """Reads one file and, before it, those that it names. Raises ConfigError when it is no YAML."""
        if file in trail:
            circle = " -> ".join(step.name for step in (*trail[trail.index(file) :], file))
            self.findings.add(path, f"the files name each other in a circle: {circle}")
        elif file not in self.found:
            tree = self.load(file)
            nested = f"{file}: config_paths"
            inner = _names(tree.pop("config_paths", []), nested, self.findings)
            self.read(inner, nested, (*trail, file))
            self.found[file] = tree


def read_env_file(cwd: Path, load: Load, findings: Findings) -> tuple[Path | None, dict[str, Any]]:
    """env.yaml of the working directory, else of the checkout; None and nothing when there is none."""
    folders = [folder for folder in (cwd, lookup.repository()) if folder]
    file = next((folder / ENV_FILE for folder in folders if (folder / ENV_FILE).is_file()), None)
    if file is None:
        return None, {}
    try:
        return file, load(file)
    except ConfigError as error:
        findings.incomplete = True
        findings.problems += error.problems
        return None, {}


def label(file: Path, cwd: Path) -> str:
    """The file as a user would name it."""
    for root in (cwd.resolve(), lookup.shipped_configs()):
        if file.is_relative_to(root):
            return file.relative_to(root).as_posix()
    return str(file)
