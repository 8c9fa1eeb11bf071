"""The direction of imports, read from the sources: those inside functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "local_vllm"
HOUSE = PACKAGE.name

# From the top down: a part imports from lower rows only. Three parts stand beside the rows.
LAYERS = (
    {"cli"},
    {"runs", "rollouts", "environments"},
    {"serving"},
    {"engine"},
    {"cluster"},
    {"plan", "config"},
    {"errors"},
)
BESIDE = {
    "protocol": {"serving"},
    "processes": {"engine", "cluster", "runs"},
    "cpu": {"engine"},
}
WITHOUT_RAY = ("config", "cpu", "errors", "plan", "processes", "protocol")
HEAVY = ("ray", "vllm", "torch")


def imported_names(source: str, module: str) -> Iterator[str]:
    """Every name that a source imports, dotted and absolute: `from a.b import c` gives `a.b.c`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def module_name(file: Path) -> str:
    """The dotted name; that of a package ends in `__init__`, so that `.` means the package in both."""
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)


IMPORTS: Mapping[str, frozenset[str]] = {
    module_name(file): frozenset(imported_names(file.read_text(encoding="utf-8"), module_name(file)))
    for file in sorted(PACKAGE.rglob("*.py"))
}


def part(name: str) -> str:
    """`engine` of `local_vllm.engine.actor`; empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def edges() -> set[tuple[str, str]]:
    """Module -> imported name, wherever one part of the house imports another."""
    return {
        (module, name)
        for module, names in IMPORTS.items()
        for name in names
        if is_below(name, HOUSE) and part(name) not in ("", part(module))
    }


def from_part(*parts: str) -> set[tuple[str, str]]:
    return {(module, name) for module, name in edges() if part(module) in parts}


def to_part(*parts: str) -> set[tuple[str, str]]:
    return {(module, name) for module, name in edges() if part(name) in parts}


def importers(*packages: str) -> set[str]:
    """The modules that import one of these packages, or something in it."""
    return {
        module
        for module, names in IMPORTS.items()
        if any(is_below(name, package) for name in names for package in packages)
    }


def row(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


def test_imports_inside_functions_and_relative_ones_are_seen():
    source = "def f():\n    import ray.serve\n    from . import b\n    from ..plan.cluster import Node\n"
    assert set(imported_names(source, "local_vllm.engine.a")) == {
        "ray.serve",
        "local_vllm.engine.b",
        "local_vllm.plan.cluster.Node",
    }


def test_every_part_has_its_place():
    parts = {part(module) for module in IMPORTS} - {"__init__"}
    assert parts <= {*BESIDE, *(name for layer in LAYERS for name in layer)}


def test_imports_point_downward_only():
    upward = {
        (module, name)
        for module, name in edges()
        if part(module) not in BESIDE and part(name) not in BESIDE and row(part(module)) >= row(part(name))
    }
    assert not upward


@pytest.mark.parametrize(("beside", "users"), BESIDE.items(), ids=BESIDE)
def test_a_part_beside_the_layers_is_imported_by_its_users_only(beside: str, users: set[str]):
    assert {part(module) for module, _ in to_part(beside)} <= users


@pytest.mark.parametrize("pure", ["protocol", "plan", "config", "cluster", "cpu", "processes"])
def test_a_lower_part_imports_what_it_may_and_no_more(pure: str):
    allowed = {
        "protocol": {"errors"},
        "plan": {"errors"},
        "config": {"errors"},
        "cluster": {"errors", "plan", "config", "processes"},
        "cpu": set(),
        "processes": set(),
    }
    assert {part(name) for _, name in from_part(pure)} <= allowed[pure]


def test_the_errors_import_nothing_of_ours():
    assert not from_part("errors")


def test_an_engine_knows_of_the_cluster_only_its_machines_its_nodes_and_their_placement_groups():
    known = ("local_vllm.cluster.groups", "local_vllm.cluster.machine", "local_vllm.cluster.nodes")
    strange = {(m, n) for m, n in from_part("engine") & to_part("cluster") if not n.startswith(known)}
    assert not strange


def test_an_engine_takes_only_the_default_model_from_the_cpu_part():
    assert all(is_below(name, "local_vllm.cpu.default_model") for _, name in to_part("cpu"))


def test_rollouts_reach_engines_over_http_only():
    assert not from_part("rollouts") & to_part("engine")


def test_nothing_imports_an_environment():
    assert not to_part("environments")


def test_only_compose_knows_hydra_and_omegaconf():
    assert importers("hydra", "omegaconf") == {"local_vllm.config.compose"}


def test_only_the_cpu_part_imports_vllm():
    assert {part(module) for module in importers("vllm")} == {"cpu"}


def test_vllms_cpu_platform_is_all_that_is_imported_of_vllm():
    names = {name for names in IMPORTS.values() for name in names if is_below(name, "vllm")}
    assert names == {"vllm.platforms.cpu.CpuPlatform"}


@pytest.mark.parametrize("name", WITHOUT_RAY)
def test_a_part_that_can_do_without_ray_does(name: str):
    assert name not in {part(module) for module in importers("ray")}


def test_nothing_private_of_another_library_is_imported():
    private = {
        (module, name)
        for module, names in IMPORTS.items()
        for name in names
        if not is_below(name, HOUSE)
        and name.split(".")[0] != "__future__"
        and any(step.startswith("_") for step in name.split("."))
    }
    assert not private


@pytest.mark.parametrize("module", ["local_vllm.processes.guard", "local_vllm.processes.tree"])
def test_the_guard_of_a_process_needs_the_standard_library_alone(module: str):
    roots = {name.split(".")[0] for name in IMPORTS[module]}
    assert roots <= {*sys.stdlib_module_names, HOUSE}


@pytest.mark.parametrize(
    "start",
    [
        "local_vllm.config",
        "local_vllm.plan",
        "local_vllm.protocol",
        "local_vllm.serving.gateway",
        "local_vllm.cli.run",
        "local_vllm.runs.run",
    ],
)
def test_importing_it_loads_neither_ray_nor_vllm_nor_torch(start: str):
    modules = [module.removesuffix(".__init__") for module in IMPORTS if is_below(module, start)]
    assert modules
    program = (
        "import importlib, sys\n"
        f"for module in {modules!r}: importlib.import_module(module)\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_ruff_finds_nothing():
    ruff = [Path(sys.executable).with_name("ruff"), "check", "--no-cache", str(PACKAGE.parent)]
    checked = subprocess.run(ruff, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout
