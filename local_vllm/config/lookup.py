"""Where files named in a configuration are: beside the file naming them, in the working folder, or shipped.

It knows the paths that documents of NeMo Gym use for files which are shipped here under shorter ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from local_vllm.config.nearest import nearest

PACKAGE = Path(__file__).resolve().parents[1]

# A published path -> where such a file is shipped, below one of the roots.
_PUBLISHED = (
    (re.compile(r"responses_api_models/[^/]+/configs/(.+)"), (r"\1",)),
    (re.compile(r"responses_api_agents/([^/]+)/configs/(.+)"), (r"\2", r"\1/configs/\2")),
    (re.compile(r"resources_servers/([^/]+)/configs/(.+)"), (r"\2", r"\1/configs/\2")),
    (re.compile(r"resources_servers/([^/]+)/data/(.+)"), (r"\1/data/\2",)),
)


class FileNotFound(Exception):
    """A file is in none of the places: the message names them, and the nearest name there is."""


def repository() -> Path | None:
    """The checkout this package runs from; None when it was installed from a wheel."""
    return PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None


def shipped_configs() -> Path:
    """The folder of the shipped configs."""
    checkout = repository()
    return checkout / "configs" if checkout else PACKAGE / "configs"


def environments() -> Path:
    """The folder of the shipped agents and environments."""
    return PACKAGE / "environments"


def shipped_names() -> tuple[str, ...]:
    """The shipped configs, as one writes them in config_paths."""
    root = shipped_configs()
    return tuple(sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml")))


def find_file(name: str, folders: Sequence[Path]) -> Path:
    """The first file called `name` in `folders`, else the shipped one. Raises FileNotFound."""
    given = Path(name).expanduser()
    relative = [folder / given for folder in folders] + _shipped_places(name)
    places = [given] if given.is_absolute() else relative
    places = list(dict.fromkeys(place.resolve() for place in places))
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(map(str, places))
    raise FileNotFound(f"`{name}` was not found; looked at {looked}{_suggestion(name, places)}")


def _shipped_places(name: str) -> list[Path]:
    roots = (shipped_configs(), environments())
    places = [roots[0] / name]
    for published, spellings in _PUBLISHED:
        if match := published.fullmatch(name):
            places += [root / match.expand(spelling) for root in roots for spelling in spellings]
    return places


def _suggestion(name: str, places: Sequence[Path]) -> str:
    siblings = {str(Path(name).parent / path.name) for place in places for path in _yaml_files(place.parent)}
    shipped = shipped_names()
    meant = nearest(_without_folders(name), shipped, cutoff=0.7) or nearest(name, siblings, cutoff=0.7)
    meant = meant or nearest(Path(name).name, shipped)
    return f"; did you mean {meant}?" if meant else f"; shipped are {', '.join(shipped)}"


def _without_folders(name: str) -> str:
    """`Qwen/X.yaml` of `responses_api_models/local_vllm_model/configs/Qwen/X.yaml`."""
    return re.sub(r"^(responses_api_models|responses_api_agents|resources_servers)/[^/]+/configs/", "", name)


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.y*ml")) if folder.is_dir() else []
