"""Requests through the pass-through, the converter alone and the whole path, over a stand-in engine."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

from benchmarks.measuring import Figures, Pace, interleaved
from benchmarks.scenarios import SHORT, STREAMS, WHOLE, Scenario
from benchmarks.table import Row
from benchmarks.targets import (
    CONVERTER,
    ENGINE,
    GATEWAY,
    LAYERS,
    PASS_THROUGH,
    WHOLE_PATH,
    Target,
    converter,
    layers,
    pass_through,
    stand_in_engine,
    whole_path,
)

# CPU per request (of streams: per delta event) over the pass-through's, by target and scenario.
MARKS: Mapping[tuple[str, str], float] = MappingProxyType({
    (CONVERTER, "short"): 0.5,
    (CONVERTER, "conv"): 0.9,
    (CONVERTER, "train-small"): 0.9,
    (CONVERTER, "train-large"): 2.7,
    (WHOLE_PATH, "short"): 1.5,
    (WHOLE_PATH, "conv"): 2.0,
    (WHOLE_PATH, "train-small"): 2.0,
    (WHOLE_PATH, "train-large"): 3.5,
    (WHOLE_PATH, "train-multi"): 4.5,
    (WHOLE_PATH, "stream"): 2.0,
    (WHOLE_PATH, "short-stream"): 2.0,
})
ADDED_P50_MS, ADDED_P99_MS = 1.0, 3.0
IDLE_S = 4.0
PARTS = ("whole-path", "converter", "layers", "streaming", "latency")


def rows(parts: Collection[str], pace: Pace, folder: Path) -> Iterator[Row]:
    """The lines of those `parts`, each as soon as it is measured."""
    asked = [name for part, name in (("converter", CONVERTER), ("whole-path", WHOLE_PATH)) if part in parts]
    with ExitStack() as stack:
        running = _start(stack, folder, parts, idle_s=min(IDLE_S, 10 * pace.seconds))
        for scenario in WHOLE if asked else ():
            beside = [GATEWAY] if WHOLE_PATH in asked and scenario is SHORT else []
            targets = [running[name] for name in (PASS_THROUGH, *asked, *beside)]
            yield from ratios(scenario, interleaved(targets, scenario, pace))
        if "layers" in parts:
            targets = [running[name] for name in (PASS_THROUGH, *LAYERS, CONVERTER)]
            yield from ratios(SHORT, interleaved(targets, SHORT, pace))
        for scenario in STREAMS if "streaming" in parts else ():
            targets = [running[name] for name in (PASS_THROUGH, CONVERTER, WHOLE_PATH)]
            yield from ratios(scenario, interleaved(targets, scenario, pace))
        if "latency" in parts:
            targets = [running[name] for name in (ENGINE, PASS_THROUGH, WHOLE_PATH)]
            yield from added(interleaved(targets, SHORT, pace, connections=1))


def _start(stack: ExitStack, folder: Path, parts: Collection[str], idle_s: float) -> dict[str, Target]:
    """What the parts need, by name."""
    engine = stack.enter_context(stand_in_engine(folder))
    targets = [engine, stack.enter_context(pass_through(folder, engine))]
    if {"converter", "layers", "streaming"} & {*parts}:
        targets.append(stack.enter_context(converter(folder, engine)))
    if "layers" in parts:
        targets += stack.enter_context(layers(folder, engine))
    if {"whole-path", "streaming", "latency"} & {*parts}:
        targets += stack.enter_context(whole_path(folder, engine, idle_s))
    return {target.name: target for target in targets}


def ratios(scenario: Scenario, measured: Mapping[str, Figures]) -> list[Row]:
    """One line for each target: its CPU time over that of the pass-through in the same rounds."""
    base = measured[PASS_THROUGH]
    return [
        Row(
            f"{name}: {scenario.title}",
            measured=None if name == PASS_THROUGH else found.cpu_ms / base.cpu_ms if base.cpu_ms else math.nan,
            mark=MARKS.get((name, scenario.name)),
            problem=found.problem or base.problem,
            figures=_in_figures(scenario, found),
        )
        for name, found in measured.items()
    ]


def _in_figures(scenario: Scenario, found: Figures) -> dict[str, float]:
    cpu = {"cpu_us_per_event": 1000 * found.cpu_ms / scenario.deltas} if scenario.deltas else {"cpu_ms": found.cpu_ms}
    if len(found.cpu_ms_by_role) > 1 and not scenario.deltas:
        cpu |= {f"{role}_ms": ms for role, ms in found.cpu_ms_by_role.items()}
    times = {"p50_ms": found.p50_ms, "p99_ms": found.p99_ms, "requests": found.requests, "errors": found.errors}
    return cpu | times


def added(measured: Mapping[str, Figures]) -> list[Row]:
    """How much later than the engine's own answer that of each target comes, one request at a time."""
    direct = measured[ENGINE]
    lines = []
    for name, found in measured.items():
        if name == ENGINE:
            continue
        marked = name == WHOLE_PATH
        for quantile, mark in (("p50", ADDED_P50_MS), ("p99", ADDED_P99_MS)):
            with_it, without = (getattr(each, f"{quantile}_ms") for each in (found, direct))
            lines.append(
                Row(
                    f"{name}: added latency, {quantile}",
                    "ms",
                    with_it - without,
                    mark if marked else None,
                    found.problem or direct.problem,
                    {f"{quantile}_ms": with_it, "direct_ms": without, "requests": found.requests},
                )
            )
    return lines
