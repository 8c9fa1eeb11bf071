"""What is suspicious about an answer that is right in form: mostly that an engine's parsers are not its model's.

Each doubt is worth one line in a log, with what to look at first; the answer goes to the client as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from local_vllm.protocol.calls import Asked, Doubt
from local_vllm.protocol.chat import Usage
from local_vllm.protocol.items import Message, OutputItem, OutputText, ReasoningItem
from local_vllm.protocol.reasoning import Tags
from local_vllm.protocol.tokens import NoTokens, Tokens, count

# How models write the calls that a parser of vLLM's takes out of their text.
CALL_MARKS = ("<tool_call>", "<|tool_call", "<|python_tag|>", "[TOOL_CALLS]", "<function=", "<TOOLCALL>")


def doubts_of(asked: Asked, output: Sequence[OutputItem], *, whole: bool, unparsed: Tags | None) -> Iterator[Doubt]:
    """What is suspicious about what was said. `whole` is false for an answer that was cut off; `unparsed` are the
    tags of reasoning where the server leaves them in the text.
    """
    if asked.toolbox.tools and whole and (mark := _call_mark(output)):
        yield Doubt(
            "tools",
            f"Tool call parsing failed: the text of an answer has {mark}. Verify that the engine is started with "
            "--enable-auto-tool-choice, and that --tool-call-parser is the one for this model",
        )
    if unparsed is not None and any(tag in text for text in _texts(output) for tag in unparsed):
        yield Doubt(
            "reasoning",
            f"Expected reasoning but got raw content: the text of an answer has {unparsed[0]} or {unparsed[1]}. "
            "Verify uses_reasoning_parser: true in the config",
        )
    elif whole and _wants_reasoning(asked) and not _has_reasoning(output):
        yield Doubt(
            "reasoning",
            "Expected reasoning but got raw content: a request set reasoning.effort, and the answer has no reasoning. "
            "Check that the model reasons, and that --reasoning-parser or reasoning_tags are those of this model",
        )


def token_doubt(found: Tokens | NoTokens, usage: Usage | None) -> Doubt | None:
    """Why there are no token ids though they were asked for, or that they are not as many as the engine counted."""
    if isinstance(found, NoTokens):
        remedy = "Ensure that the engine's /tokenize is accessible, and check vLLM's version"
        return Doubt("tokens", f"Token ids were asked for and are missing: {found.reason}. {remedy}")
    counted = (count(found.prompt), found.generated)
    expected = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else counted
    if counted == expected:
        return None
    return Doubt(
        "tokens",
        f"Token count differs from expected: {counted[0]} ids of the prompt and {counted[1]} generated ones, where the "
        f"engine's usage says {expected[0]} and {expected[1]}. Ensure that the engine's /tokenize is accessible, and "
        "check vLLM's version",
    )


def _texts(output: Sequence[OutputItem]) -> Iterator[str]:
    for item in output:
        if type(item) is Message:
            yield from (part.text for part in item.content if type(part) is OutputText)


def _call_mark(output: Sequence[OutputItem]) -> str | None:
    if any(type(item) not in (Message, ReasoningItem) for item in output):
        return None
    return next((mark for text in _texts(output) for mark in CALL_MARKS if mark in text), None)


def _wants_reasoning(asked: Asked) -> bool:
    reasoning: Any = asked.request.reasoning
    return reasoning is not None and reasoning.effort not in (None, "none", "minimal")


def _has_reasoning(output: Sequence[OutputItem]) -> bool:
    """An answer of calls alone is no raw content."""
    return any(type(item) is not Message for item in output)
