"""`ng_call`: one request to an agent or a model of a running `ng_run`, and what came back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

from local_vllm.cli.failures import told
from local_vllm.config.compose import load_run_config
from local_vllm.config.schema import GLOBAL_KEYS, RESOURCES
from local_vllm.errors import ConfigError, LocalVLLMError, Problem, RunError
from local_vllm.runs.addresses import Addresses, find_addresses

USAGE = """\
ng_call sends one request to an agent or a model of a running ng_run, and prints what came back.

  ng_call +agent_name=simple_weather_simple_agent "What is the weather in Paris?"
  ng_call +agent_name=policy_model "Hello!"
  ng_call ... +responses_create_params.temperature=0      request fields beside the text
  ng_call ... --json                                      the whole response
  ng_call ... -- "+1 is a text that begins with a plus"   what follows -- is text

It finds the run on this machine; +ray_address=host:port asks for those of a cluster, +http_host=... and
+http_port=... say where to ask.
Exit status: 0 done, 2 the command line is wrong, 1 the request failed, or nothing is there to answer it.
"""

DEADLINE_S = 4 * 3600.0


class Asked(NamedTuple):
    """The command line, understood: overrides of the configuration, and the text."""

    overrides: list[str]
    text: str
    json: bool


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    if {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    try:
        _call(_understood(argv))
    except LocalVLLMError as error:
        return told("ng_call", error)
    except KeyboardInterrupt:
        print("ng_call: stopped", file=sys.stderr)
        return 1
    return 0


def _understood(argv: Sequence[str]) -> Asked:
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    options = [word for word in words[:cut] if word == "--json" or _is_override(word)]
    texts = [word for word in words[:cut] if word not in options] + words[cut + 1 :]
    text = " ".join(texts).strip()
    if not text:
        raise ConfigError([Problem("", 'what to say is missing: ng_call +agent_name=... "Hello!"')])
    return Asked([word for word in options if word != "--json"], text, "--json" in options)


def _is_override(word: str) -> bool:
    return word.startswith(("+", "~")) or word.partition("=")[0].partition(".")[0] in GLOBAL_KEYS


def _call(asked: Asked) -> None:
    settings = load_run_config(asked.overrides, cwd=Path.cwd()).settings
    if settings.agent_name is None:
        raise ConfigError([Problem("agent_name", "must be given: the agent or the model server to ask")])
    addresses = find_addresses(settings)
    url = addresses.url_of(settings.agent_name)
    _check_answers(settings.agent_name, addresses)
    fields = {"model": settings.agent_name} | settings.responses_create_params | {"input": asked.text}
    # What is printed is a whole response.
    fields.pop("stream", None)
    content = asyncio.run(_response(f"{url}/v1/responses", fields, addresses.key_of(settings.agent_name)))
    response = _read(url, content)
    if asked.json:
        print(msgspec.json.format(content, indent=2).decode())
    elif words := list(_in_words(response)):
        print(*words, sep="\n")
    if response.get("status") == "failed":
        reason = (response.get("error") or {}).get("message") or "it gave no reason"
        raise RunError(f"{settings.agent_name} failed while it answered: {reason}")


def _check_answers(name: str, addresses: Addresses) -> None:
    for run_record in addresses.servers.get(name, ()):
        if any(server.name == name and server.kind == RESOURCES for server in run_record.servers):
            raise RunError(f"`{name}` is one of {RESOURCES}, which answers no texts: name an agent or a model server")


async def _response(url: str, fields: Mapping[str, Any], key: str | None) -> bytes:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S, sock_connect=10)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.post(url, json=fields, headers=headers) as answer,
        ):
            content = await answer.read()
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise RunError(f"no answer from {url}: {error or type(error).__name__}") from error
    if answer.status != 200:
        raise RunError(f"{url} answered with status {answer.status}: {_message(content)}")
    return content


def _read(url: str, content: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        shown = content[:200].decode(errors="replace")
        raise RunError(f"{url} answered with what is no response ({error}); it begins: {shown}") from error


def _message(content: bytes) -> str:
    try:
        return str(msgspec.json.decode(content)["error"]["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return content[:1000].decode(errors="replace")


def _in_words(response: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a response, and the calls between them with their results."""
    for item in response.get("output", ()):
        kind = item.get("type")
        if kind == "message":
            yield "".join(part.get("text") or part.get("refusal") or "" for part in item.get("content", ()))
        elif kind == "function_call":
            yield f"call   {item['name']}({item['arguments']})"
        elif kind == "custom_tool_call":
            yield f"call   {item['name']}({item['input']})"
        elif kind in ("function_call_output", "custom_tool_call_output"):
            yield f"result {item['output']}"
    if response.get("status") == "incomplete":
        yield f"(incomplete: {(response.get('incomplete_details') or {}).get('reason')})"


if __name__ == "__main__":
    main()
