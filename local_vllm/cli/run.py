"""`ng_run`: bring model servers up from configuration, and serve until Ctrl-C."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from local_vllm.cli.failures import told
from local_vllm.config.compose import load_run_config
from local_vllm.config.help import global_keys_help, server_keys_help
from local_vllm.config.schema import RunConfig
from local_vllm.errors import ConfigError, LocalVLLMError

if TYPE_CHECKING:
    from rich.console import Console

USAGE = """\
ng_run brings vLLM engines up on a Ray cluster and serves the OpenAI Responses API in front of them.

  ng_run                                                   the default model, on whatever this machine has
  ng_run "+config_paths=[Qwen/Qwen3-4B.yaml]"              a shipped config
  ng_run "+config_paths=[a.yaml,b.yaml]"                   several, merged from left to right
  ng_run "+config_paths=[...]" \\
    ++policy_model.responses_api_models.local_vllm_model.vllm_serve_kwargs.tensor_parallel_size=2
                                                           any key, overridden on the command line
  ng_run +model=Qwen/Qwen3-30B-A3B-Instruct-2507           the shipped config of a model
  ng_run ... +dry_run=true                                 the plan, drawn, and every engine's command line
  ng_run ... +dry_run=true +cluster=4x8                    the same for 4 nodes of 8 GPUs that need not exist

Overrides are Hydra's: +key=value adds, ++key=value adds or replaces, ~key removes.
Ctrl-C waits for requests in flight and leaves nothing running; a second Ctrl-C stops at once.
A dry run plans on +cluster, else on the Ray cluster to be joined as it is now, else on this machine; it
starts and takes nothing. A plan that does not fit ends with status 1, as in a real run.
Exit status: 0 done, 2 the configuration is wrong, 1 anything else.
"""

LOG_WIDTH = 180


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    if {"-h", "--help"} & set(argv):
        print(USAGE, global_keys_help(), server_keys_help(), sep="\n")
        return 0
    try:
        config = load_run_config(argv, cwd=Path.cwd())
    except ConfigError as error:
        return _told(error)

    from rich.console import Console

    # A log file has no width of its own, and a table folded to 80 columns cannot be read.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    for notice in config.notices:
        console.print(f"Note: {notice}", soft_wrap=True)
    try:
        _do(config, console)
    except LocalVLLMError as error:
        return _told(error)
    return 0


def _do(config: RunConfig, console: Console) -> None:
    """What the configuration asks for; each way loads only what it needs."""
    if config.settings.dry_run:
        from local_vllm.runs.dry_run import dry_run

        dry_run(config, console)
    else:
        from local_vllm.runs.run import Run

        asyncio.run(Run(config, console).serve())


def _told(error: LocalVLLMError) -> int:
    return told("ng_run", error, heading=" the configuration is wrong:")


if __name__ == "__main__":
    main()
