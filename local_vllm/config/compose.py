"""From a command line to a RunConfig: config files, then env.yaml, then overrides, one tree, checked.

The only module that knows Hydra and OmegaConf. What keys mean is schema.py's, what is wrong validate.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from local_vllm.config.apps import AppFolders
from local_vllm.config.described import is_shape
from local_vllm.config.files import chosen_files, label, read_env_file, read_files
from local_vllm.config.findings import Findings
from local_vllm.config.implementations import Implementations
from local_vllm.config.names import (
    POLICY_MODEL,
    canonical_path,
    canonical_tree,
    full_path,
    interpolations,
    is_server,
    meant_by,
    unknown_name,
)
from local_vllm.config.nearest import did_you_mean, nearest
from local_vllm.config.notices import code_notices, merge_notices, secret_notices, spelling_notices
from local_vllm.config.schema import GLOBAL_KEYS, GlobalSettings, RunConfig
from local_vllm.config.validate import (
    check_globals,
    check_loops,
    check_references,
    check_servers,
    with_references,
)
from local_vllm.config.words import comma_separated, grammar_hint, one_line, shown
from local_vllm.errors import ConfigError, Problem

COMMAND_LINE = "command line"
_RESOLVER_FAILED = "KeyError raised while resolving interpolation: "


@dataclass(frozen=True, slots=True)
class Override:
    """One word of the command line, understood."""

    path: tuple[str, ...]
    value: Any = None
    delete: bool = False


def load_run_config(argv: Sequence[str], *, cwd: Path) -> RunConfig:
    """The configuration that `argv` asks for, with files looked up from `cwd`.

    Raises ConfigError with every problem found. Needs no weights, no network and no Ray.
    """
    findings = Findings()
    overrides = _parse(argv, findings)
    given = {override.path[0]: override.value for override in overrides if len(override.path) == 1}
    env_file, env = read_env_file(cwd, _load, findings)
    names, variables = chosen_files(given, env, _load, findings)
    sources = read_files(names, cwd, _load, findings) | ({env_file: env} if env_file else {})
    labelled = {label(file, cwd): tree for file, tree in sources.items()}
    findings.notices += [*merge_notices(labelled), *spelling_notices(labelled), *secret_notices(given)]
    tree = _merged([variables, *sources.values()])
    tree = _overridden(tree, overrides, findings)
    resolved = _with_described_cluster(_resolved(tree, findings), cwd, findings)
    known = Implementations(AppFolders(cwd, tuple(sources)))
    return _checked(resolved, names, tuple(sources), known, findings)


def _checked(
    resolved: dict[str, Any],
    names: Sequence[str],
    files: tuple[Path, ...],
    known: Implementations,
    findings: Findings,
) -> RunConfig:
    settings = check_globals({**resolved, "config_paths": names}, findings.problems)
    servers = check_servers(resolved, known, findings.problems)
    if not findings.incomplete:
        check_references(resolved, known, findings.problems)
    if settings:
        check_loops(servers, settings, findings.problems)
    problems = findings.sure()
    if problems or settings is None:
        raise ConfigError(problems)
    notices = (*findings.notices, *code_notices(servers))
    return RunConfig(settings, with_references(servers, resolved), notices, files)


# The command line


def _parse(argv: Sequence[str], findings: Findings) -> list[Override]:
    parser = OverridesParser.create()
    overrides = []
    for word in argv:
        try:
            overrides.append(_override(parser, word))
        except ValueError as error:
            findings.add(COMMAND_LINE, f"`{shown(word)}`: {error}")
        except (HydraException, OmegaConfBaseException) as error:
            reason = str(error).splitlines()[0].rstrip(".") if shown(word) == word else "not Hydra's grammar"
            findings.add(COMMAND_LINE, f"`{shown(word)}` cannot be read ({reason}){grammar_hint(word)}")
    return overrides


def _override(parser: OverridesParser, word: str) -> Override:
    parsed = parser.parse_override(one_line(word))
    if parsed.package is not None:
        raise ValueError("`@` chooses a package of a Hydra config group, and there are none here")
    path = tuple(parsed.key_or_group.split("."))
    if parsed.is_delete():
        return Override(path, delete=True)
    value = comma_separated(word) if parsed.is_sweep_override() else parsed.value()
    if value is None and parsed.is_sweep_override():
        raise ValueError("several values without brackets: write [a,b] for a list")
    OmegaConf.create({"value": value})  # fails on a malformed ${...}
    return Override(path, value)


# One file


def _load(file: Path) -> dict[str, Any]:
    """One config file in canonical spelling. Raises ConfigError with the file, line and column."""
    tree = _read(file)
    if not isinstance(tree, dict):
        raise ConfigError([Problem(str(file), "must be a mapping of servers and variables, not a list")])
    return canonical_tree({str(key): value for key, value in tree.items()})


def _read(file: Path) -> Any:
    """What a YAML file holds. Raises ConfigError with the file, line and column."""
    try:
        content = OmegaConf.load(file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise ConfigError([Problem(where, f"is not YAML: {error.problem or error.context}")]) from error
    except (OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(_where(file, error), str(error).splitlines()[0])]) from error
    return OmegaConf.to_container(content, resolve=False)


def _with_described_cluster(resolved: dict[str, Any], cwd: Path, findings: Findings) -> dict[str, Any]:
    """The same tree, with what is in the file that `cluster` names, if it names one that is there."""
    named = resolved.get("cluster")
    if not isinstance(named, str) or is_shape(named):
        return resolved
    file = cwd / Path(named).expanduser()
    if not file.is_file():
        return resolved
    try:
        return resolved | {"cluster": _read(file)}
    except ConfigError as error:
        findings.problems += error.problems
        return {key: value for key, value in resolved.items() if key != "cluster"}


def _where(file: Path, error: Exception) -> str:
    key = getattr(error, "full_key", None)
    return f"{file}: {key}" if key else str(file)


# One tree


def _merged(trees: Iterable[Mapping[str, Any]]) -> DictConfig:
    return cast(DictConfig, OmegaConf.merge({}, *trees))


def _overridden(tree: DictConfig, overrides: Iterable[Override], findings: Findings) -> DictConfig:
    for override in overrides:
        plain = _plain(tree)
        path = canonical_path(full_path((meant_by(override.path[0], plain), *override.path[1:]), plain))
        if message := unknown_name(path, plain):
            findings.add_absent(".".join(override.path), message)
        elif override.delete:
            _delete(path, tree, findings)
        else:
            tree = _merged([tree, canonical_tree(_nested(path, override.value))])
    return tree


def _nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value


def _delete(path: tuple[str, ...], tree: DictConfig, findings: Findings) -> None:
    node: Any = tree
    for key in path[:-1]:
        node = node.get(key) if isinstance(node, DictConfig) else None
    if isinstance(node, DictConfig) and path[-1] in node:
        del node[path[-1]]
    elif path[0] not in GLOBAL_KEYS:
        siblings = [str(key) for key in node] if isinstance(node, DictConfig) else []
        findings.add_absent(".".join(path), f"is not there to be removed{did_you_mean(path[-1], siblings)}")


def _plain(node: DictConfig) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(node, resolve=False))


# Interpolations


def _resolved(tree: DictConfig, findings: Findings) -> dict[str, Any]:
    """The global keys and the servers with every `${...}` replaced; what cannot be is left out, a problem."""
    plain = _plain(tree)
    wanted = {
        key: text
        for key, text in plain.items()
        if key in GlobalSettings.model_fields or isinstance(text, dict)
    }
    policy_model = meant_by(POLICY_MODEL, plain)
    if policy_model != POLICY_MODEL:
        tree = _merged([tree, {POLICY_MODEL: f"${{{policy_model}}}"}])
    resolver = _Resolver(tree, findings)
    return dict(resolver.items(tree, wanted, ()))


@dataclass(frozen=True, slots=True)
class _Resolver:
    """Replaces interpolations one by one, so that all that fail are found and not just the first."""

    tree: DictConfig
    findings: Findings

    def items(self, node: Any, texts: Any, path: tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
        """Key and value of what can be resolved in a mapping or list; `texts` is the same, unresolved."""
        for key in texts if isinstance(texts, dict) else range(len(texts)):
            try:
                value = node[key]
            except OmegaConfBaseException as error:
                where = (*path, str(key))
                self.findings.add_absent(".".join(where), self.reason(error, texts[key]))
                continue
            yield key, self.value(value, texts[key], (*path, str(key)))

    def value(self, value: Any, text: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(value, DictConfig | ListConfig):
            return value
        # A whole mapping or list that came through an interpolation has texts of its own.
        texts = text if isinstance(text, dict | list) else OmegaConf.to_container(value, resolve=False)
        items = self.items(value, texts, path)
        return dict(items) if isinstance(value, DictConfig) else [item for _, item in items]

    def reason(self, error: OmegaConfBaseException, text: str) -> str:
        """Why a value could not be resolved, and what to write where."""
        if isinstance(error, MissingMandatoryValue):
            return "must be filled: it is ??? in the config file"
        unfilled = isinstance(error, InterpolationToMissingValueError)
        names = [name for name in interpolations(text) if ":" not in name]
        if isinstance(error, InterpolationKeyError):
            names = [name for name in names if self.leads_nowhere(name)]
        if not names or not (unfilled or isinstance(error, InterpolationKeyError)):
            return f"`{text}` cannot be resolved: {str(error).splitlines()[0].removeprefix(_RESOLVER_FAILED)}"
        name = names[0]
        missing = "is ???" if unfilled else "leads nowhere"
        match = None if unfilled or "." in name else nearest(name, self.variables())
        hint = f"; did you mean `${{{match}}}`?" if match else ""
        return f"`${{{name}}}` {missing}: set {name} in env.yaml, or on the command line as +{name}=...{hint}"

    def leads_nowhere(self, name: str) -> bool:
        return OmegaConf.select(self.tree, name, default=None, throw_on_missing=False) is None

    def variables(self) -> list[str]:
        return [key for key, value in _plain(self.tree).items() if not is_server(value) and value is not None]
