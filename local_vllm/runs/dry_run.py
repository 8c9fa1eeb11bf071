"""`+dry_run=true`: the plan, drawn, and how each engine would be started. Nothing is started or taken.

The command lines and variables come from the functions that the launch uses (engine/command.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console

from local_vllm.config.client_keys import access_problems
from local_vllm.config.redact import HIDDEN, redacted
from local_vllm.config.schema import RunConfig, ServerConfig
from local_vllm.engine import command
from local_vllm.engine.foreseen import foreseen_model_config, foreseen_weights, is_of_the_hub
from local_vllm.engine.spec import EngineSpec
from local_vllm.errors import ConfigError, PlacementError
from local_vllm.plan.drawing import Paint, draw_placements, letter
from local_vllm.plan.launches import launched_after
from local_vllm.plan.placement import Placement, plan_placements
from local_vllm.runs import pictures
from local_vllm.runs.colours import drawing_width, painter, print_painted
from local_vllm.runs.engine_specs import NO_KEY, engine_specs, local_servers, topologies
from local_vllm.runs.pictures import Picture
from local_vllm.runs.preflight import joined_address, logical_gpus_problems
from local_vllm.runs.record import ServerRecord, state_folder
from local_vllm.runs.server_records import server_records, server_url
from local_vllm.runs.shell_text import shell_text

RUN = "<run>"
LOGS = f"<date>-<time>-{RUN}"
PORT = "<free port>"
GENERATED_KEY = "<generated key>"


def dry_run(config: RunConfig, console: Console) -> None:
    """Print what `ng_run` would do with this configuration.

    Raises:
        ConfigError: the configuration does not suit this machine.
        PlacementError: the engines do not fit; the nodes have been drawn.
        ClusterError: the live cluster to plan on cannot be joined.
    """
    if not topologies(config):
        console.print("Dry run: no server of this configuration has an engine. Nothing is started.")
        _print_paragraphs(console, [*_others(config, [], pictures.serve_url(config))])
        return
    picture = _picture(config)
    console.print(f"Dry run: a plan for {picture.title}. Nothing is started.\n", soft_wrap=True)
    paint, width = painter(console), drawing_width(console)
    try:
        placements = plan_placements(picture.cluster, topologies(config))
    except PlacementError:
        print_painted(console, draw_placements(picture.cluster, [], width=width))
        raise
    print_painted(console, draw_placements(picture.cluster, placements, width=width, paint=paint))
    specs = shown_specs(config, picture, placements)
    engines, others = _engines(specs, picture, paint), _others(config, specs, picture.url)
    _print_paragraphs(console, [*engines, *others, "\n".join(_notes(specs, picture))])


def _print_paragraphs(console: Console, paragraphs: Sequence[str]) -> None:
    for paragraph in paragraphs:
        print_painted(console, f"\n{paragraph}")


def _picture(config: RunConfig) -> Picture:
    if config.settings.cluster is not None:
        return pictures.described(config, config.settings.cluster)
    if problems := [*logical_gpus_problems(config), *access_problems(config.settings, config.settings.http_host)]:
        raise ConfigError(problems)
    if address := joined_address(config):
        return pictures.live(config, address)
    return pictures.this_machine(config)


def _engines(specs: Sequence[EngineSpec], picture: Picture, paint: Paint) -> Iterator[str]:
    """A paragraph for each engine, in the order of the launch."""
    placements = [spec.placement for spec in specs]
    in_order = sorted(range(len(specs)), key=lambda index: placements[index].launch_order)
    waits = launched_after(placements)
    for place, index in enumerate(in_order, start=1):
        heading = f"{letter(index)}  {specs[index].server}"
        after = ", ".join(letter(other) for other in sorted(waits[index]))
        launch = f"launch {place} of {len(specs)}{f', after {after}' if after else ''}"
        yield f"{paint(heading, index)}  ({launch})\n" + _engine(specs[index], picture)


def _others(config: RunConfig, specs: Sequence[EngineSpec], url: str) -> Iterator[str]:
    """The servers whose engines are not the run's, and the gateway."""
    if others := [record for record in server_records(config, specs) if record.placement is None]:
        listed = (_other(record, url) for record in others)
        yield "\n".join(["Servers without an engine of this run:", *listed])
    yield f"Gateway  {url}/v1"


def _engine(spec: EngineSpec, picture: Picture) -> str:
    site = shown_site(spec, picture)
    url = f"{picture.url}/{spec.server}/v1"
    text = shell_text(command.our_environment(spec, site), command.typed_command(spec, site))
    return f"URL  {url}\nlog  {spec.log_path}  (on {spec.placement.master_address})\n\n{text}"


def _other(record: ServerRecord, url: str) -> str:
    where = f" at {record.engine_url}" if record.engine_url else ""
    answers = record.model or ", ".join(record.uses)
    told = ", ".join(filter(None, (record.implementation, f"{answers}{where}")))
    return f"  {record.name}  {told}\n    URL  {server_url(url, record)}"


def _notes(specs: Sequence[EngineSpec], picture: Picture) -> Iterator[str]:
    yield f"Words in <> are settled when the engine starts; {HIDDEN} hides a secret."
    yield "Each engine inherits the other variables of Ray on its node."
    if picture.kind == "gpu":
        yield "`vllm serve` is run as `python -m vllm.entrypoints.cli.main serve`, with the Python of ng_run."
    if any(is_of_the_hub(spec.model) for spec in specs):
        yield "A model of the Hub is fetched first, and vLLM is given the folder that it was fetched to."


def shown_specs(config: RunConfig, picture: Picture, placements: Sequence[Placement]) -> list[EngineSpec]:
    """The specs of a launch, with a word in place of each secret."""
    specs = engine_specs(config, placements, RUN, state_folder() / "logs" / LOGS)
    return [_shown(spec, server, picture) for spec, server in zip(specs, local_servers(config), strict=True)]


def _shown(spec: EngineSpec, server: ServerConfig, picture: Picture) -> EngineSpec:
    return replace(
        spec,
        api_key=_key_word(spec.api_key, server.settings.api_key.get_secret_value(), picture),
        hf_token=HIDDEN if spec.hf_token else None,
        vllm_serve_kwargs=redacted(spec.vllm_serve_kwargs),
        vllm_serve_env_vars=redacted(spec.vllm_serve_env_vars),
        hub_variables=redacted(spec.hub_variables),
        direct_responses=redacted(spec.direct_responses),
    )


def _key_word(key: str, configured: str, picture: Picture) -> str:
    if configured != NO_KEY:
        return HIDDEN
    return NO_KEY if key == NO_KEY and picture.is_local else GENERATED_KEY


def shown_site(spec: EngineSpec, picture: Picture) -> command.Site:
    """The engine's node as far as it is known before anything runs there."""
    kind = picture.kind
    return command.Site(
        kind=kind,
        port=PORT,
        node_address=spec.placement.master_address,
        ray_address=picture.ray_address,
        weights=foreseen_weights(spec.model),
        model_config=foreseen_model_config(spec.model, spec.hf_home) if kind == "cpu" else None,
        scratch=spec.scratch,
        environment={},
    )
