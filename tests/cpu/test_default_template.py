"""What the chat template makes the default model say: the tokens at the distance that the prompt names."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Said = Callable[..., str]
Messages = list[dict[str, Any]]


def tool(name: str, required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required or list(properties)}
    function = {"name": name, "description": "It helps.", "parameters": parameters}
    return {"type": "function", "function": function}


WEATHER = tool("get_weather", ["city"], city={"type": "string"}, unit={"enum": ["C", "F"]})


def a_call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("ECHO:exactly this ", "exactly this "),
        ("ECHO:", ""),
        ("ECHO:naïve 日本 🎉 100%\n\ttab", "naïve 日本 🎉 100%\n\ttab"),
        ("ECHO:<|im_end|><|endoftext|><|", "<|im_end|><|endoftext|><|"),
        ("ECHO:a <think>b</think> <tool_call>", "a <think>b</think> <tool_call>"),
        ("ECHO:a\U0010fff0b", "a\ufffdb"),
        ("THINK:a thought|an answer|with a bar", "<think>\na thought\n</think>\n\nan answer|with a bar"),
        ("THINK:only a thought", "<think>\nonly a thought\n</think>\n\n"),
        ('CALL:{"name": "f", "arguments": {}}', a_call("f", "{}")),
        (
            'CALL:[{"name": "f", "arguments": {"x": "],{\\""}}, {"name": "g", "arguments": [1, {}]}]',
            a_call("f", '{"x": "],{\\""}') + "\n" + a_call("g", "[1, {}]"),
        ),
        (
            'THINKCALL:hm|{"name": "f", "arguments": {}}',
            "<think>\nhm\n</think>\n\n" + a_call("f", "{}"),
        ),
        ("REPEAT:1", "word"),
        ("REPEAT:4", "word word word word"),
        ("REPEAT:0", ""),
        ("REPEAT:many", ""),
        ("REPEAT:", ""),
        ("FLIP:3", "???"),
        ("STEPS:ECHO:first||ECHO:second", "first"),
    ],
)
@pytest.mark.parametrize("tools", [None, [WEATHER]])
def test_a_directive_decides_what_is_said_with_tools_and_without(
    text: str, answer: str, tools: list[Any] | None, said: Said
) -> None:
    assert said(text, tools=tools, plain_answers=True) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Hello there", "You said: Hello there"),
        ("", "You have not said anything yet."),
        ("echo:lower case is no directive", "You said: echo:lower case is no directive"),
    ],
)
def test_ordinary_text_is_quoted(text: str, answer: str, said: Said) -> None:
    assert said(text, plain_answers=True) == answer


def test_without_a_thought_an_empty_block_closes_the_thinking_by_default(said: Said) -> None:
    assert said("ECHO:x") == "<think></think>x"


def test_enable_thinking_false_leaves_out_thought_and_block(said: Said) -> None:
    assert said("THINK:a|b", enable_thinking=False) == "b"
    assert said("Hello", enable_thinking=False) == "You said: Hello"


def test_enable_thinking_true_makes_ordinary_answers_think(said: Said) -> None:
    assert said("Hello", enable_thinking=True) == (
        "<think>\nI repeat what was said to me.\n</think>\n\nYou said: Hello"
    )


@pytest.mark.parametrize(
    ("text", "called", "arguments"),
    [
        ("What is the weather in Paris?", WEATHER, {"city": "Paris"}),
        ("What is the weather in New York?", WEATHER, {"city": "New York"}),
        ("is it warm", WEATHER, {"city": "is it warm"}),
        (
            "From Paris to London, I hope",
            tool("fly", start={"type": "string"}, goal={"type": "string"}),
            {"start": "Paris", "goal": "London"},
        ),
        ("go slow", tool("go", mode={"enum": ["fast", "slow"]}), {"mode": "slow"}),
        ("go", tool("go", mode={"enum": ["fast", "slow"]}), {"mode": "fast"}),
        (
            "add",
            tool("f", i={"type": "integer"}, n={"type": "number", "minimum": 3}, b={"type": "boolean"}),
            {"i": 1, "n": 3, "b": True},
        ),
        ("x", tool("f", c={"const": "k"}, z={"type": "null"}), {"c": "k", "z": None}),
        ("x", tool("f", l={"type": "array", "items": {"type": "integer"}, "minItems": 2}), {"l": [1, 1]}),
        (
            "x",
            tool("f", o={"type": "object", "properties": {"p": {"type": "integer"}}, "required": ["p"]}),
            {"o": {"p": 1}},
        ),
        ("x", tool("f", v={"anyOf": [{"type": "integer"}, {"type": "null"}]}), {"v": 1}),
        ("x", tool("f", v={"type": ["boolean", "null"]}), {"v": True}),
        ("x", {"type": "function", "function": {"name": "f"}}, {}),
        ("x", {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}, {}),
        ("x", {"type": "function", "name": "flat", "parameters": {}}, {}),
    ],
)
def test_ordinary_text_calls_the_first_tool_with_arguments_of_its_schema(
    text: str, called: dict[str, Any], arguments: dict[str, Any], said: Said
) -> None:
    answer = said(text, tools=[called, tool("other")], plain_answers=True)
    assert answer.startswith("<tool_call>\n") and answer.endswith("\n</tool_call>")
    call = json.loads(answer.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert call == {"name": called.get("function", called)["name"], "arguments": arguments}


def test_a_schema_that_refers_to_itself_ends(said: Said) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}
    endless = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    called = {"type": "function", "function": {"name": "f", "parameters": endless}}
    answer = said("x", tools=[called], plain_answers=True)
    assert json.loads(answer.removeprefix("<tool_call>").removesuffix("</tool_call>"))["name"] == "f"


def conversation(user: str, *results: str) -> Messages:
    """A user's text, a call for each result, and the results."""
    function = {"name": "get_weather", "arguments": {"city": "Paris"}}
    calls = [{"id": str(index), "type": "function", "function": function} for index in range(len(results))]
    return [
        {"role": "user", "content": user},
        {"role": "assistant", "content": None, "reasoning": "I call.", "tool_calls": calls},
        *({"role": "tool", "tool_call_id": str(i), "content": text} for i, text in enumerate(results)),
    ]


def test_a_tool_result_is_passed_on(said: Said) -> None:
    answer = said(conversation("Paris?", "sunny"), tools=[WEATHER], plain_answers=True)
    assert answer == "The tool answered: sunny"


def test_several_tool_results_are_passed_on_together(said: Said) -> None:
    answer = said(conversation("Paris?", "sunny", "21 °C"), tools=[WEATHER], plain_answers=True)
    assert answer == "The tools answered: sunny; 21 °C"


def test_a_directive_is_not_obeyed_again_after_its_tool_answered(said: Said) -> None:
    messages = conversation('CALL:{"name": "f", "arguments": {}}', "done")
    assert said(messages, tools=[WEATHER], plain_answers=True) == "The tool answered: done"


def test_steps_give_one_directive_to_each_turn_of_the_model(said: Said) -> None:
    steps = 'STEPS:CALL:{"name": "f", "arguments": {}}||ECHO:done'
    assert said(steps, plain_answers=True) == a_call("f", "{}")
    assert said(conversation(steps, "ok"), plain_answers=True) == "done"
    assert said([*conversation(steps, "ok"), *conversation(steps, "ok")[1:]], plain_answers=True) == "done"


def test_only_the_results_since_the_last_call_are_passed_on(said: Said) -> None:
    messages = [*conversation("Paris?", "old"), *conversation("Paris?", "new")[1:]]
    assert said(messages, plain_answers=True) == "The tool answered: new"


def test_a_dump_is_exactly_what_the_template_was_given(said: Said) -> None:
    messages = [
        {"role": "system", "content": "Be <b>brief</b> \U0010fff0 <think>"},
        *conversation("é <|im_end|> <tool_call>", "r"),
        {"role": "user", "content": "DUMP"},
    ]
    dumped = said(messages, tools=[WEATHER], enable_thinking=False, reasoning_effort="low")
    assert "<" not in dumped
    assert json.loads(dumped) == {
        "messages": messages,
        "tools": [WEATHER],
        "enable_thinking": False,
        "reasoning_effort": "low",
    }


def test_a_dump_is_given_after_a_tool_result_too(said: Said) -> None:
    messages = conversation("DUMP", "sunny")
    assert json.loads(said(messages, plain_answers=True))["messages"] == messages


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_every_role_may_have_content_parts(role: str, said: Said) -> None:
    parts = [{"type": "text", "text": "ECHO:a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": "ECHO:ab"}, {"role": role, "content": parts}]
    assert said(messages, plain_answers=True) in ("ab", "The tool answered: ECHO:ab")


def test_an_unknown_role_is_an_error(said: Said) -> None:
    with pytest.raises(Exception, match="Unknown role"):
        said([{"role": "narrator", "content": "x"}])


@pytest.mark.parametrize("character", ["x", "é", "日", "🎉", "<|", "%"])
@pytest.mark.parametrize("length", [1, 17, 18, 19, 20, 21, 500, 3000])
def test_an_echo_of_any_length_stands_at_its_distance(character: str, length: int, said: Said) -> None:
    text = character * length
    assert said("ECHO:" + text, plain_answers=True) == text


@pytest.mark.parametrize("text", ["x" * 40_000, "日x" * 20_000, "<|" * 20_000])
def test_an_answer_that_is_too_long_is_cut(text: str, said: Said) -> None:
    answer = said("ECHO:" + text, plain_answers=True)
    assert text.startswith(answer)
    assert len(answer.encode()) > 16_000


@pytest.mark.parametrize("count", [2, 31, 4000, 16_000])
def test_repeat_takes_about_one_token_a_word(
    count: int, said: Said, prompt_ids: Callable[..., list[int]]
) -> None:
    assert said(f"REPEAT:{count}", plain_answers=True).split() == ["word"] * count
    assert len(prompt_ids([{"role": "user", "content": f"REPEAT:{count}"}])) < count + 100


def test_quoted_text_is_cut_so_that_long_input_leaves_room(
    said: Said, prompt_ids: Callable[..., list[int]]
) -> None:
    long = "ab " * 8000
    assert said(long, plain_answers=True) == "You said: " + long[:2000] + " ..."
    assert len(prompt_ids([{"role": "user", "content": long}])) < len(long) + 2200


def test_a_conversation_is_the_prefix_of_the_next_turn(prompt_ids: Callable[..., list[int]]) -> None:
    first = [{"role": "user", "content": "Hello"}]
    answered = [*first, {"role": "assistant", "content": "You said: Hello"}]
    longer = [*answered, {"role": "user", "content": "More"}]
    shown = prompt_ids(first, add_generation_prompt=False)
    assert prompt_ids(first)[: len(shown)] == shown
    assert prompt_ids(longer)[: len(shown)] == shown


def test_without_a_generation_prompt_nothing_but_the_conversation_is_rendered(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "ECHO:a"}, {"role": "assistant", "content": "b"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    assert prompt == "<|im_start|>user\nECHO:a<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    continued = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert continued.endswith("assistant\nb")


def test_calls_and_thoughts_of_earlier_turns_are_shown(tokenizer: Any) -> None:
    messages = conversation("Paris?", "sunny")
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    assert "<think>\nI call.\n</think>\n\n" + a_call("get_weather", '{"city": "Paris"}') in prompt
    as_text = json.loads(json.dumps(messages))
    as_text[1]["tool_calls"][0]["function"]["arguments"] = '{"city": "Paris"}'
    assert tokenizer.apply_chat_template(as_text, tokenize=False, add_generation_prompt=False) == prompt
