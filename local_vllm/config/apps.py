"""Agents and resources servers are apps: files that are looked for by an implementation's name, and loaded.

A user's own stands in `<kind>/<implementation>/` below the working folder, or around the config file that names
it; the shipped ones are in the package. What an app does is its own business.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from local_vllm.config import lookup
from local_vllm.config.fields import Settings

AGENTS = "responses_api_agents"
RESOURCES = "resources_servers"
SHIPPED = "local_vllm.environments"
DEFAULT_ENTRYPOINT = "app.py"


class AppError(Exception):
    """There is no such app, or it cannot be loaded: the message is one line, and says where was looked."""


@dataclass(frozen=True, slots=True)
class AppFolders:
    """Where a run's apps are looked for: the working folder, and the config files that it reads."""

    cwd: Path
    files: tuple[Path, ...] = ()

    def find(self, kind: str, implementation: str, entrypoint: str = DEFAULT_ENTRYPOINT) -> str:
        """The app's file, or the module of a shipped one. Raises AppError."""
        shipped = lookup.environments() / implementation / entrypoint
        places = [folder / entrypoint for folder in self._folders(kind, implementation)]
        for place in dict.fromkeys(place.resolve() for place in places):
            if place.is_file() and place != shipped:
                return str(place)
        if shipped.is_file():
            return f"{SHIPPED}.{implementation}.{Path(entrypoint).stem}"
        raise AppError(f"unknown implementation: there is no {kind}/{implementation}/{entrypoint} in {self.cwd}")

    def _folders(self, kind: str, implementation: str) -> Iterator[Path]:
        yield self.cwd / kind / implementation
        for file in self.files:
            if file.parent.name == "configs" and file.parents[1].name == implementation:
                yield file.parents[1]


def load_app(app: str, kind: str) -> type:
    """The class that an app's file or module defines; it has `kind` and, in `Settings`, what it can be told.

    A class with a method `check` says itself what is wrong with it. Raises AppError.
    """
    with _explained(app):
        module = _loaded(Path(app)) if app.endswith(".py") else importlib.import_module(app)
    found = _the_one_class(module, app, kind)
    with _explained(app):
        getattr(found, "check", _nothing)()
    return found


@contextmanager
def _explained(app: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AppError(f"{app} cannot be loaded: {type(error).__name__}: {error}") from error


def _nothing() -> None: ...


def settings_class(app: str, kind: str) -> type[Settings]:
    """What the app can be told. Raises AppError."""
    settings: type[Settings] = load_app(app, kind).Settings
    return settings


def shipped_apps() -> Sequence[str]:
    """The implementations in the package."""
    return sorted(file.parent.name for file in lookup.environments().glob(f"*/{DEFAULT_ENTRYPOINT}"))


def _loaded(file: Path) -> ModuleType:
    name = f"local_vllm_app_{hashlib.blake2b(str(file).encode(), digest_size=6).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise AppError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Where classes are pickled, and types of annotations are looked up, the module has to be known by its name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _the_one_class(module: ModuleType, app: str, kind: str) -> type:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and getattr(value, "kind", None) in (AGENTS, RESOURCES)
    ]
    if len(found) != 1:
        listed = ", ".join(each.__name__ for each in found) or "none"
        raise AppError(f"{app} has to define one class for a server of {kind}, and defines {listed}")
    if found[0].kind != kind:
        raise AppError(f"{app} defines a server of {found[0].kind}, not of {kind}")
    return found[0]
