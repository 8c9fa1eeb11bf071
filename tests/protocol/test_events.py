"""An engine's chat stream becomes the events that OpenAI's clients expect, each as soon as it can be told."""

from __future__ import annotations

import json

import pytest
from chat_stream import DONE, FIRST, USED, Conversion, call_piece, chunk, stream_of
from event_grammar import check, parse
from msgspec import Raw

from local_vllm.errors import UpstreamError
from local_vllm.protocol.events import error_status, events_of_whole
from local_vllm.protocol.logprobs import TokenTexts


def told(*deltas, request=None, finish_reason="stop", **settings):
    """The events of an answer, as (type, what it says)."""
    events = parse(Conversion(request, **settings).all(stream_of(*deltas, finish_reason=finish_reason)))
    check(events)
    return [(event["type"].removeprefix("response."), said(event)) for event in events]


def said(event):
    for name in ("delta", "text", "refusal", "arguments", "input"):
        if name in event:
            return event[name]
    if "item" in event:
        return f"{event['output_index']} {event['item']['type']} {event['item']['status']}"
    if "part" in event:
        return event["part"]["type"]
    return event["response"]["status"]


def test_a_text_is_told_word_by_word():
    assert told({"content": "Hello"}, {"content": " you"}) == [
        ("created", "in_progress"),
        ("in_progress", "in_progress"),
        ("output_item.added", "0 message in_progress"),
        ("content_part.added", "output_text"),
        ("output_text.delta", "Hello"),
        ("output_text.delta", " you"),
        ("output_text.done", "Hello you"),
        ("content_part.done", "output_text"),
        ("output_item.done", "0 message completed"),
        ("completed", "completed"),
    ]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_of_the_engine_comes_before_the_text(field):
    assert told({field: "why"}, {field: "?"}, {"content": "so"})[2:-1] == [
        ("output_item.added", "0 reasoning in_progress"),
        ("content_part.added", "reasoning_text"),
        ("reasoning_text.delta", "why"),
        ("reasoning_text.delta", "?"),
        ("reasoning_text.done", "why?"),
        ("content_part.done", "reasoning_text"),
        ("output_item.done", "0 reasoning completed"),
        ("output_item.added", "1 message in_progress"),
        ("content_part.added", "output_text"),
        ("output_text.delta", "so"),
        ("output_text.done", "so"),
        ("content_part.done", "output_text"),
        ("output_item.done", "1 message completed"),
    ]


def test_reasoning_in_the_text_is_found_where_tags_are_cut():
    events = told({"content": "<thi"}, {"content": "nk>why</th"}, {"content": "ink>so <b>"}, {"content": "!"})
    deltas = [event for event in events if event[0].endswith(".delta")]
    assert deltas == [
        ("reasoning_text.delta", "why"),
        ("output_text.delta", "so <b>"),
        ("output_text.delta", "!"),
    ]


def test_two_calls_are_told_one_after_the_other():
    events = told(
        {"content": "see"},
        call_piece(0, "", "f"),
        call_piece(0, '{"a":'),
        call_piece(0, "1}"),
        call_piece(1, '{"b":2}', "f"),
        finish_reason="tool_calls",
    )
    assert events[6:-1] == [
        ("content_part.done", "output_text"),
        ("output_item.done", "0 message completed"),
        ("output_item.added", "1 function_call in_progress"),
        ("function_call_arguments.delta", '{"a":'),
        ("function_call_arguments.delta", "1}"),
        ("function_call_arguments.done", '{"a":1}'),
        ("output_item.done", "1 function_call completed"),
        ("output_item.added", "2 function_call in_progress"),
        ("function_call_arguments.delta", '{"b":2}'),
        ("function_call_arguments.done", '{"b":2}'),
        ("output_item.done", "2 function_call completed"),
    ]


def test_pieces_of_calls_that_alternate_go_to_their_calls():
    conversion = Conversion()
    begun = [call_piece(0, '{"a"', "f"), call_piece(1, '{"b"', "f")]
    pieces = [*begun, call_piece(0, ":1}"), call_piece(1, ":2}")]
    output = check(parse(conversion.all(stream_of(*pieces))))["output"]
    assert [(item["call_id"], item["arguments"]) for item in output] == [("c0", '{"a":1}'), ("c1", '{"b":2}')]


def test_calls_that_all_have_number_0_are_told_apart_by_their_ids():
    conversion = Conversion()
    pieces = [call_piece(0, '{"a":1}', "f", id="x"), call_piece(0, '{"b":2}', "f", id="y")]
    output = check(parse(conversion.all(stream_of(*pieces))))["output"]
    assert [(item["call_id"], item["arguments"]) for item in output] == [("x", '{"a":1}'), ("y", '{"b":2}')]


def test_the_input_of_a_custom_tool_is_told_without_its_json():
    pieces = ['{"inp', 'ut": "', "a\\", "n\\u00", "e9 \\ud83d", '\\ude00"', "}"]
    events = told(call_piece(0, None, "patch"), *[call_piece(0, piece) for piece in pieces])
    assert events[2:-1] == [
        ("output_item.added", "0 custom_tool_call in_progress"),
        ("custom_tool_call_input.delta", "a"),
        ("custom_tool_call_input.delta", "\n"),
        ("custom_tool_call_input.delta", "é "),
        ("custom_tool_call_input.delta", "😀"),
        ("custom_tool_call_input.done", "a\né 😀"),
        ("output_item.done", "0 custom_tool_call completed"),
    ]


def test_a_refusal_is_told_as_one():
    assert told({"refusal": "no"}, {"refusal": "!"})[2:-1] == [
        ("output_item.added", "0 message in_progress"),
        ("content_part.added", "refusal"),
        ("refusal.delta", "no"),
        ("refusal.delta", "!"),
        ("refusal.done", "no!"),
        ("content_part.done", "refusal"),
        ("output_item.done", "0 message completed"),
    ]


def test_an_empty_answer_is_an_empty_message():
    assert [kind for kind, _ in told()] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_a_limit_ends_in_incomplete():
    conversion = Conversion()
    response = check(parse(conversion.all(stream_of({"content": "x"}, finish_reason="length"))))
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


def test_an_engine_that_gives_up_ends_in_failed():
    response = check(parse(Conversion().all(stream_of({"content": "x"}, finish_reason="abort"))))
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")


def test_an_answer_that_breaks_off_ends_in_failed_with_what_was_said():
    conversion = Conversion()
    stream = conversion.told([FIRST, chunk({"content": "half"})])
    events = parse(stream + conversion.events.fail(UpstreamError("The connection broke.")))
    response = check(events)
    assert response["error"] == {"code": "server_error", "message": "The connection broke."}
    assert response["output"][0]["content"][0]["text"] == "half"
    assert response["output"][0]["status"] == "incomplete"


def test_our_own_mistake_is_not_told_to_the_client():
    failed = Conversion().events.fail(KeyError("secret"))
    assert b"secret" not in failed and check(parse(failed))["status"] == "failed"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"error": {"message": "out of memory", "code": 500}}', "out of memory"),
        (b"<html>", "no chat completion"),
        (b'{"model": 7}', "no chat completion"),
    ],
)
def test_what_cannot_be_told_is_an_upstream_error(payload, message):
    conversion = Conversion()
    conversion.told([FIRST])
    with pytest.raises(UpstreamError, match=message):
        conversion.events.add(payload)


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b'{"error": {"message": "m", "code": 400}}', 400),
        (b'{"error": {"message": "m", "code": "oops"}}', 500),
        (b'{"error": {"message": "m", "code": 200}}', 500),
        (FIRST, None),
        (DONE, None),
        (b"<html>", None),
    ],
)
def test_an_error_in_place_of_an_event_has_a_status(payload, status):
    assert error_status(payload) == status


def test_every_delta_is_told_at_once():
    conversion = Conversion()
    conversion.told([FIRST])
    assert b'"delta":"Hi"' in conversion.events.add(chunk({"content": "Hi"}))
    assert not conversion.events.has_said_all
    assert conversion.events.add(chunk({}, "stop")) == b""
    assert conversion.events.has_said_all


def test_the_response_at_the_end_is_what_a_whole_answer_gives():
    streamed, whole = Conversion(), Conversion({"stream": None})
    response = check(parse(streamed.all(stream_of({"reasoning": "why"}, {"content": "so"}))))
    answer = {
        "model": "org/engine-model",
        "usage": json.loads(USED)["usage"],
        "choices": [{"message": {"reasoning": "why", "content": "so"}, "finish_reason": "stop"}],
    }
    assert json.loads(whole.converter.to_response(whole.call, json.dumps(answer).encode()).body) == response
    assert json.loads(streamed.events.response) == response


def test_a_response_that_was_over_before_it_began_is_a_stream_too():
    conversion = Conversion(context_overflow="incomplete")
    message = "This model's maximum context length is 10 tokens. Your request contains 99 input tokens."
    error = {"error": {"message": message, "type": "BadRequestError", "param": "input_tokens", "code": 400}}
    answer = conversion.converter.from_failure(conversion.call, 400, json.dumps(error).encode())
    response = check(parse(events_of_whole(answer.body)))
    assert response["metadata"]["context_overflow_tokens_asked"] == "99"


# ---- tokens


def with_tokens(*tokens, **delta):
    """An event with tokens of its own: (id, text, log probability)."""
    return chunk(delta, token_ids=[n for n, _, _ in tokens], logprobs=listed(*[token[1:] for token in tokens]))


def listed(*tokens):
    """(text, log probability) as chat lists them."""
    return {
        "content": [
            {"token": text, "logprob": log_prob, "bytes": list(text.encode()), "top_logprobs": []}
            for text, log_prob in tokens
        ]
    }


TOKENS = [
    chunk({"role": "assistant", "content": ""}, prompt_token_ids=[1, 2, 3]),
    with_tokens((10, "<think>", -0.5)),
    with_tokens((11, "why", -1.25), reasoning="why"),
    with_tokens((12, "</think>", -0.0)),
    with_tokens((13, "so", -2.5), (14, " it", -3.5), content="so it"),
    with_tokens((15, " is", -4.5), content=" is"),
    with_tokens((16, "<|im_end|>", -0.125)).replace(b'"finish_reason": null', b'"finish_reason": "stop"'),
    USED,
    DONE,
]


def test_token_ids_are_on_the_last_item_and_in_the_response():
    conversion = Conversion(return_token_id_information=True)
    events = parse(conversion.all(TOKENS))
    last = check(events)["output"][-1]
    assert last["prompt_token_ids"] == [1, 2, 3]
    assert last["generation_token_ids"] == [10, 11, 12, 13, 14, 15, 16]
    assert last["generation_log_probs"] == [-0.5, -1.25, 0.0, -2.5, -3.5, -4.5, -0.125]
    assert not conversion.events.needs_tokenize
    (first_done,) = [e["item"] for e in events if e["type"].endswith("item.done") and e["output_index"] == 0]
    assert "prompt_token_ids" not in first_done


def test_token_ids_are_on_a_block_of_reasoning_that_nothing_follows():
    conversion = Conversion(return_token_id_information=True)
    payloads = [
        TOKENS[0],
        with_tokens((10, "<think>", -1.0), (11, "why", -1.0), content="<think>why"),
        with_tokens((12, "</think>", -1.0), (13, "\n", -1.0), content="</think>\n"),
        chunk({}, "stop", token_ids=[14], logprobs={"content": [{"token": "", "logprob": -2.0}]}),
        DONE,
    ]
    (item,) = check(parse(conversion.all(payloads)))["output"]
    assert (item["type"], item["generation_token_ids"]) == ("reasoning", [10, 11, 12, 13, 14])


def test_ids_are_found_in_the_names_of_tokens_too():
    conversion = Conversion(return_token_id_information=True)
    named = chunk({"content": "x"}, logprobs={"content": [{"token": "token_id:7", "logprob": -1.0}]})
    (item,) = check(parse(conversion.all([TOKENS[0], named, chunk({}, "stop"), DONE])))["output"]
    assert item["generation_token_ids"] == [7]


def test_prompt_ids_that_are_missing_can_be_supplied():
    conversion = Conversion(return_token_id_information=True)
    stream = conversion.told([FIRST, *TOKENS[1:]])
    assert conversion.events.needs_tokenize
    tokenized = b'{"count": 2, "tokens": [8, 9]}'
    last = check(parse(stream + conversion.events.finish(tokenized)))["output"][-1]
    assert last["prompt_token_ids"] == [8, 9]


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (chunk({"content": "x"}, token_ids=[1]), "no log probabilities"),
        (chunk({"content": "x"}, logprobs=listed(("x", -1.0))), "no token ids"),
        (chunk({"content": "x"}, token_ids=[1, 2], logprobs=listed(("x", -1.0))), "2 token ids but 1"),
        (chunk({"content": "x"}, token_ids=[1], logprobs=listed(("x", None))), "no number"),
    ],
)
def test_tokens_that_do_not_add_up_are_left_out(spoilt, reason):
    conversion = Conversion(return_token_id_information=True)
    stream = conversion.told([TOKENS[0], spoilt, chunk({}, "stop"), DONE])
    assert "prompt_token_ids" not in check(parse(stream + conversion.events.finish()))["output"][-1]
    assert reason in conversion.events.doubts[-1].message


def test_log_probabilities_go_with_the_text_that_their_tokens_made():
    conversion = Conversion({"include": ["message.output_text.logprobs"]})
    events = parse(conversion.all(TOKENS))
    response = check(events)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [[p["token"] for p in event["logprobs"]] for event in deltas] == [["so", " it"], [" is"]]
    (done,) = [event for event in events if event["type"] == "response.output_text.done"]
    assert [p["logprob"] for p in done["logprobs"]] == [-2.5, -3.5, -4.5]
    assert response["output"][-1]["content"][0]["logprobs"] == done["logprobs"]


def test_the_tokens_of_a_text_are_looked_for_behind_those_that_were_taken():
    tokens = TokenTexts()
    names = ["<think>", "ab", "</think>", "cd", "ab", ""]
    tokens.add(Raw(json.dumps([{"token": name, "logprob": -n} for n, name in enumerate(names)]).encode()))
    taken = [[json.loads(bytes(entry))["logprob"] for entry in tokens.take(text)] for text in ("cd", "ab")]
    assert taken == [[-3], [-4]]


def test_log_probabilities_that_were_not_asked_for_are_not_told():
    events = parse(Conversion(return_token_id_information=True).all(TOKENS))
    assert all(event["logprobs"] == [] for event in events if "logprobs" in event)


def test_only_the_events_of_text_have_log_probabilities():
    conversion = Conversion({"include": ["message.output_text.logprobs"]})
    deltas = [({"reasoning": "why"}, "why"), ({"content": "so"}, "so"), ({"refusal": "no"}, "no")]
    pieces = [chunk(delta, logprobs=listed((token, -1.0))) for delta, token in deltas]
    events = parse(conversion.all([FIRST, *pieces, chunk({}, "stop"), DONE]))
    having = {event["type"] for event in events if "logprobs" in event}
    assert having == {"response.output_text.delta", "response.output_text.done"}
