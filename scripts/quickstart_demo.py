#!/usr/bin/env python3
"""Shows what a running `ng_run` answers, with the official openai client: its models, a text, a tool call.

`quickstart_demo.py [BASE_URL]` asks any server that is up; starting one is quickstart_run.py's part.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import openai
from openai.types.responses import Response, ResponseFunctionToolCall
from rich.console import Console
from rich.rule import Rule

DEFAULT_BASE_URL = "http://127.0.0.1:11000/v1"
REQUEST_TIMEOUT_S = 600.0  # the first answers of a large model may have to wait for kernels to compile
WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city, now.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "The city's name."}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class DemonstrationFailed(Exception):
    """A request failed, or its answer lacks what it should have; the message is one line."""


def demonstrate(base_url: str, console: Console) -> None:
    """Make and print the requests.

    Raises:
        DemonstrationFailed: one of them did not work.
    """
    http_client = openai.DefaultHttpxClient(trust_env=False)  # the internet's proxy cannot reach this host
    with openai.OpenAI(
        base_url=base_url, api_key="EMPTY", timeout=REQUEST_TIMEOUT_S, max_retries=0, http_client=http_client
    ) as client:
        demonstration = Demonstration(client, console)
        try:
            demonstration.list_models()
            demonstration.ask_for_text()
            demonstration.ask_for_a_tool_call()
        except openai.OpenAIError as error:
            raise DemonstrationFailed(f"a request to {base_url} failed: {error}") from error


class Demonstration:
    """The requests, one after the other, to the first model that the server lists."""

    def __init__(self, client: openai.OpenAI, console: Console) -> None:
        self._client = client
        self._console = console
        self._model = ""

    def list_models(self) -> None:
        models = [model.id for model in self._client.models.list()]
        if not models:
            raise DemonstrationFailed(f"{self._client.base_url}models lists no model")
        self._model = models[0]
        self._title("Models")
        self._show("base URL", str(self._client.base_url).rstrip("/"))
        self._show("models", ", ".join(models))

    def ask_for_text(self) -> None:
        self._title("A text")
        answer = self._respond(input="Hello! Who are you?")
        _require_text(answer, "the text request")

    def ask_for_a_tool_call(self) -> None:
        self._title("A tool call")
        conversation: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Paris?"}]
        answer = self._respond(input=conversation, tools=[WEATHER_TOOL])
        calls = [item for item in answer.output if isinstance(item, ResponseFunctionToolCall)]
        if not calls:
            raise DemonstrationFailed("no tool call came back for the weather in Paris")
        # All that the model said goes back with the results: a list input carries the whole conversation.
        conversation += [item.model_dump(exclude_none=True) for item in answer.output]
        conversation += [self._result(call) for call in calls]
        answer = self._respond(input=conversation, tools=[WEATHER_TOOL])
        _require_text(answer, "the request with the tool's result")

    def _result(self, call: ResponseFunctionToolCall) -> dict[str, Any]:
        result = run_tool(call)
        self._show("run here", f"{call.name} -> {result}")
        return {"type": "function_call_output", "call_id": call.call_id, "output": result}

    def _respond(self, **request: Any) -> Response:
        body = {"model": self._model, **request}
        self._show("request", f"POST {self._client.base_url}responses")
        self._show("", request_text(body))
        answer: Response = self._client.responses.create(**body)
        for item in answer.output:
            self._show("answer", _in_words(item))
        return answer

    def _title(self, text: str) -> None:
        self._console.print()
        self._console.print(Rule(text, align="left"))

    def _show(self, label: str, text: str) -> None:
        self._console.print(f"[bold]{label:<10}[/bold]", end="")
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def request_text(body: dict[str, Any]) -> str:
    """The body as JSON, with a line for each key and for each item of a list."""
    fields = [f"{json.dumps(key)}: {_value_text(value)}" for key, value in body.items()]
    return "{" + ",\n           ".join(fields) + "}"


def _value_text(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    items = [json.dumps(item, ensure_ascii=False) for item in value]
    return "[" + ",".join(f"\n             {item}" for item in items) + "]"


def run_tool(call: ResponseFunctionToolCall) -> str:
    """The result of the call, as the text that goes back to the model.

    Raises:
        DemonstrationFailed: it calls another tool than ours, or not with what it takes.
    """
    try:
        city = json.loads(call.arguments)["city"]
    except (ValueError, TypeError, KeyError) as error:
        raise DemonstrationFailed(f"{call.name} was called with {call.arguments}, without a city") from error
    if call.name != WEATHER_TOOL["name"]:
        raise DemonstrationFailed(f"the model called {call.name}, a tool that it was not given")
    return get_weather(city)


def get_weather(city: str) -> str:
    """Made up, and the same for every city."""
    return f"18 degrees and sunny in {city}"


def _in_words(item: Any) -> str:
    if item.type == "function_call":
        return f"call {item.name}({item.arguments})"
    if item.type == "message":
        return "".join(part.text for part in item.content if part.type == "output_text")
    if item.type == "reasoning":
        return "reasoning: " + "".join(part.text for part in [*item.summary, *(item.content or [])])
    return str(item.type)


def _require_text(answer: Response, what: str) -> None:
    if not answer.output_text.strip():
        raise DemonstrationFailed(f"{what} came back without a text (status {answer.status})")


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask a running server for a text and a tool call.")
    parser.add_argument("base_url", nargs="?", default=DEFAULT_BASE_URL, help="default: %(default)s")
    try:
        demonstrate(parser.parse_args().base_url, Console())
    except DemonstrationFailed as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
