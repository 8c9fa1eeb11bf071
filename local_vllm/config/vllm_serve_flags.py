"""What `vllm serve` accepts: checks a `vllm_serve_kwargs` mapping and turns it into words of a command line.

The list is checked in (scripts/update-vllm-flags writes it from vLLM's own help), so that a typo is found
without importing vLLM. Which values make sense together is left to vLLM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from local_vllm.config.nearest import did_you_mean
from local_vllm.errors import Problem

FLAGS_FILE = Path(__file__).with_name("vllm_serve_flags.json")

FlagKind = Literal["switch", "negatable", "value", "optional_value", "values", "repeated", "comma_separated"]

# What vLLM's help does not show: how a list is given to these two.
_LIST_SHAPES: dict[str, FlagKind] = {
    "middleware": "repeated",
    "disable_access_log_for_endpoints": "comma_separated",
}

_ENGINE = "the engine's own launch sets it"
_PLANNED = "the placement plan sets it"
_ALONE = "the engine would not answer where its model server looks for it"
SET_BY_US: dict[str, str] = {
    "model": "write it as `model` of the server, one level up",
    "model_tag": "write it as `model` of the server, one level up",
    "host": f"{_ENGINE} to 0.0.0.0",
    "port": f"{_ENGINE} to a free port of the node it runs on",
    "distributed_executor_backend": f"{_ENGINE} to ray",
    "data_parallel_backend": f"{_ENGINE} to ray",
    "download_dir": "it follows from `hf_home` of the server: set that",
    "api_key": "write it as `api_key` of the server, one level up",
    "hf_token": "set HF_TOKEN in the environment or in env.yaml",
    "config": "write the flags of that file here instead",
    "data_parallel_address": _PLANNED,
    "data_parallel_rank": _PLANNED,
    "data_parallel_start_rank": _PLANNED,
    "data_parallel_rpc_port": _PLANNED,
    "data_parallel_hybrid_lb": _PLANNED,
    "data_parallel_external_lb": _PLANNED,
    "data_parallel_multi_port_external_lb": _PLANNED,
    "nnodes": _PLANNED,
    "node_rank": _PLANNED,
    "master_addr": _PLANNED,
    "master_port": _PLANNED,
    "headless": _ALONE,
    "grpc": _ALONE,
    "uds": _ALONE,
    "root_path": _ALONE,
    "ssl_keyfile": _ALONE,
    "ssl_certfile": _ALONE,
}
# vLLM sends its statistics to its log and to /metrics, or nowhere.
NEEDED_BY_US: dict[str, str] = {
    "disable_log_stats": "the engine is watched by its statistics; show_vllm_engine_stats says whether they are logged",
}


@cache
def known_flags() -> Mapping[str, FlagKind]:
    """Every long flag of the pinned vLLM, in snake_case, and what follows it on a command line."""
    return json.loads(FLAGS_FILE.read_text())["flags"]


def known_flags_version() -> str:
    """The version of vLLM whose flags these are."""
    return json.loads(FLAGS_FILE.read_text())["vllm_version"]


def flag_problems(serve_kwargs: Mapping[str, Any]) -> Iterator[Problem]:
    """Whatever is wrong with the keys and the shapes of the values; paths are the keys themselves."""
    for key, value in serve_kwargs.items():
        flag = snake_case(key)
        if flag in SET_BY_US:
            yield Problem(key, f"must not be set here; {SET_BY_US[flag]}")
        elif flag in NEEDED_BY_US and _as_switch(value):
            yield Problem(key, f"must not be true; {NEEDED_BY_US[flag]}")
        elif flag not in known_flags():
            settable = known_flags().keys() - SET_BY_US.keys()
            hint = did_you_mean(flag, settable)
            yield Problem(key, f"vLLM {known_flags_version()} has no flag --{_dashed(flag)}{hint}")
        elif message := _shape_problem(known_flags()[flag], value):
            yield Problem(key, message)


def to_argv(serve_kwargs: Mapping[str, Any]) -> list[str]:
    """The words of `vllm serve` for checked flags, in their order.

    true is `--flag`; false is `--no-flag` where vLLM has that, else nothing; null is nothing; a mapping is
    JSON; a list is what the flag wants: words, JSON, the flag repeated, or one comma-separated word.
    """
    words: list[str] = []
    for key, value in serve_kwargs.items():
        if value is not None:
            words += _words(snake_case(key), value)
    return words


def parse_help(text: str) -> dict[str, FlagKind]:
    """The flags in what `vllm serve --help=all` prints, its lines not wrapped."""
    flags: dict[str, FlagKind] = {}
    for line in text.splitlines():
        if re.match(r"  -{1,2}[a-z]", line):
            invocation = re.split(r"\s{2,}", line.strip())[0]
            flags |= _flags_of(invocation)
    flags.pop("help", None)
    return dict(sorted(flags.items()))


def snake_case(flag: str) -> str:
    """`--max-model-len`, `max-model-len` and `max_model_len` are one flag: the last of these."""
    return flag.removeprefix("--").replace("-", "_")


def _flags_of(invocation: str) -> dict[str, FlagKind]:
    names = [snake_case(name) for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", invocation)]
    negations = {name for name in names if name.startswith("no_") and name.removeprefix("no_") in names}
    kind: FlagKind = "negatable" if negations else _kind_by_metavar(invocation)
    return {name: _LIST_SHAPES.get(name, kind) for name in names if name not in negations}


def _kind_by_metavar(invocation: str) -> FlagKind:
    metavar = re.sub(r"^-{1,2}[a-z][\w-]*", "", invocation)
    if not metavar.startswith(" "):
        return "switch"
    if metavar.endswith("...]"):
        return "values"
    return "optional_value" if re.match(r" \[[A-Z_]+\]", metavar) else "value"


def _shape_problem(kind: FlagKind, value: Any) -> str | None:
    if value is None:
        return None
    if kind in ("switch", "negatable"):
        return None if _as_switch(value) is not None else f"is a switch: true or false, not {value!r}"
    if isinstance(value, bool) and kind != "optional_value":
        return f"takes a value, not {str(value).lower()}"
    return None


def _as_switch(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None


def _words(flag: str, value: Any) -> list[str]:
    kind = known_flags()[flag]
    name = f"--{_dashed(flag)}"
    if kind in ("switch", "negatable"):
        off = [f"--no-{_dashed(flag)}"] if kind == "negatable" else []
        return [name] if _as_switch(value) else off
    if kind == "optional_value" and isinstance(value, bool):
        return [name] if value else []
    if not isinstance(value, list | tuple):
        return _one(name, _text(value))
    if kind == "values":
        return [name, *map(_text, value)] if value else []
    if kind == "repeated":
        return [word for item in value for word in _one(name, _text(item))]
    if kind == "comma_separated":
        return _one(name, ",".join(map(_text, value)))
    return _one(name, json.dumps(value))


def _one(name: str, text: str) -> list[str]:
    # A value that begins with a dash would be read as the next flag.
    return [f"{name}={text}"] if text.startswith("-") else [name, text]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _dashed(flag: str) -> str:
    return flag.replace("_", "-")
