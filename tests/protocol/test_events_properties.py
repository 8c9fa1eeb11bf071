"""Any answer, streamed in any pieces and put together again, is the answer given whole."""

from __future__ import annotations

import json

from chat_stream import DONE, USED, Conversion, call_piece, chunk
from event_grammar import check, parse
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from local_vllm.protocol.chat import Delta, FunctionDelta, ToolCallDelta
from local_vllm.protocol.custom_input import CustomInput
from local_vllm.protocol.fold import Fold
from local_vllm.protocol.logprobs import TokenTexts

WORDS = st.text(alphabet='ab \n<"\\é😀', max_size=9)
CUTS = st.lists(st.integers(0, 99), max_size=6)
VALUES = st.text(max_size=5) | st.integers()
OBJECTS = st.dictionaries(st.sampled_from(["input", "a", "é"]), VALUES, max_size=2)
ARGUMENTS = OBJECTS.map(json.dumps) | OBJECTS.map(lambda value: json.dumps(value, ensure_ascii=False)) | WORDS
CALLS = st.lists(st.tuples(st.sampled_from(["f", "patch"]), ARGUMENTS, CUTS), max_size=3)


def pieces_of(text, cuts):
    edges = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[start:end] for start, end in zip(edges, edges[1:], strict=False)]


@st.composite
def texts(draw):
    """What a model writes with tags of its own, and whether the chat template had opened the first block."""
    blocks = draw(st.lists(st.tuples(WORDS, WORDS), max_size=2))
    opened = draw(st.booleans()) and bool(blocks)
    text = "".join(f"<think>{why}</think>{so}" for why, so in blocks)
    return (text.removeprefix("<think>") if opened else draw(WORDS) + text), opened


@st.composite
def interleaved_calls(draw, calls):
    """The deltas of calls, their pieces alternating in any way that keeps each call's own in order."""
    waiting = {}
    for index, (name, arguments, cuts) in enumerate(calls):
        pieces = [call_piece(index, piece) for piece in pieces_of(arguments, cuts)]
        waiting[index] = [call_piece(index, None, name), *pieces]
    deltas, begun = [], 0
    while waiting:
        index = draw(st.sampled_from([n for n in sorted(waiting) if n <= begun]))
        begun = max(begun, index + 1)
        deltas.append(waiting[index].pop(0))
        if not waiting[index]:
            del waiting[index]
    return deltas


def whole_of(text, reasoning, calls, finish_reason, tokens):
    message = {"content": text, "reasoning": reasoning or None}
    message["tool_calls"] = [
        {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments, _) in enumerate(calls)
    ]
    logprobs = {"content": [{"token": "t", "logprob": -token / 8} for token in tokens]}
    choice = {"message": message, "finish_reason": finish_reason, "token_ids": tokens, "logprobs": logprobs}
    usage = json.loads(USED)["usage"]
    return {"model": "org/engine-model", "usage": usage, "choices": [choice], "prompt_token_ids": [1, 2]}


def with_tokens(delta, tokens, finish_reason=None):
    logprobs = {"content": [{"token": "t", "logprob": -token / 8} for token in tokens]}
    return chunk(delta, finish_reason, token_ids=tokens, logprobs=logprobs)


@settings(deadline=None)
@given(
    texts(),
    WORDS,
    CALLS,
    CUTS,
    CUTS,
    st.sampled_from(["stop", "length", "tool_calls"]),
    st.sampled_from(["reasoning", "reasoning_content"]),
    st.data(),
)
def test_a_stream_put_together_is_the_whole_answer(
    text_and_opened, reasoning, calls, cuts, more_cuts, finish_reason, field, data
):
    text, opened = text_and_opened
    deltas = [{field: piece} for piece in pieces_of(reasoning, cuts)]
    deltas += [{"content": piece} for piece in pieces_of(text, more_cuts)]
    deltas += data.draw(interleaved_calls(calls))
    per_event = [data.draw(st.lists(st.integers(0, 999), max_size=3)) for _ in deltas]
    prompt = "user: hi\nassistant: " + ("<think>\n" if opened else "")
    streamed = Conversion(return_token_id_information=True)
    payloads = [chunk({"role": "assistant", "content": ""}, prompt_token_ids=[1, 2], prompt_text=prompt)]
    payloads += [with_tokens(delta, tokens) for delta, tokens in zip(deltas, per_event, strict=True)]
    payloads += [with_tokens({}, [0], finish_reason), USED, DONE]
    response = check(parse(streamed.all(payloads)))

    tokens = [token for tokens in per_event for token in tokens] + [0]
    answer = whole_of(text, reasoning, calls, finish_reason, tokens)
    whole = Conversion({"stream": None}, return_token_id_information=True)
    assert json.loads(whole.converter.to_response(whole.call, json.dumps(answer).encode()).body) == response


@given(ARGUMENTS, CUTS)
def test_the_input_of_a_custom_tool_does_not_depend_on_the_cuts(arguments, cuts):
    cut, uncut = CustomInput(), CustomInput()
    pieces = [cut.feed(piece) for piece in pieces_of(arguments, cuts)]
    assert "".join(pieces) + cut.rest() == uncut.feed(arguments) + uncut.rest()


@given(st.text(), CUTS, st.booleans())
def test_the_input_of_a_custom_tool_is_the_string_that_json_has(text, cuts, ascii_only):
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    custom = CustomInput()
    assert "".join([custom.feed(piece) for piece in pieces_of(arguments, cuts)]) + custom.rest() == text


@given(st.lists(st.sampled_from(["a", "", "bc", "é", " <", "think>"]), max_size=9), CUTS)
def test_each_token_goes_with_one_piece_of_the_text(names, cuts):
    """Whatever the cuts: no token twice, in order, and none left behind but those without any text."""
    entries = [{"token": name, "logprob": -n} for n, name in enumerate(names)]
    tokens = TokenTexts()
    tokens.add(Raw(json.dumps(entries).encode()))
    taken = [tokens.take(piece) for piece in pieces_of("".join(names), cuts) if piece]
    numbers = [-json.loads(bytes(entry))["logprob"] for entries in taken for entry in entries]
    assert numbers == sorted(set(numbers))
    assert {n for n, name in enumerate(names) if name} <= set(numbers)


def test_what_follows_whole_arguments_goes_nowhere():
    """A call whose JSON is whole is done when the next begins, whatever an engine sends after it."""
    fold = Fold("k")
    fold.add(Delta(tool_calls=[ToolCallDelta(FunctionDelta("f", "{}"), "c0", 0)]))
    fold.add(Delta(tool_calls=[ToolCallDelta(FunctionDelta("f", "{}"), "c1", 1)]))
    fold.add(Delta(tool_calls=[ToolCallDelta(FunctionDelta(None, "  "), None, 0)]))
    fold.finish(cut_off=False)
    assert [item.arguments for item in fold.items] == ["{}", "{}"]
