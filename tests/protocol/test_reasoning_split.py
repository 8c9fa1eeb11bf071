"""Reasoning is found in the model's text, wherever its tags are and however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_vllm.protocol.chat import Delta, FunctionDelta, ToolCallDelta
from local_vllm.protocol.fold import Closed, Fold, Grew, Opened
from local_vllm.protocol.reasoning import ThinkSplitter, opens_in_reasoning


def folded(*deltas, inside=None, split=True, cut_off=False):
    text = "".join(delta.content or "" for delta in deltas)
    inside = opens_in_reasoning(text) if inside is None else inside
    fold = Fold("k", splitter=ThinkSplitter(inside=inside) if split else None)
    for delta in deltas:
        fold.add(delta)
    fold.finish(cut_off=cut_off)
    return fold.items


def plain(items):
    """Items as (type, text)."""
    told = []
    for item in items:
        kind = item.__struct_config__.tag
        if kind == "function_call":
            told.append((item.call_id, item.name, item.arguments))
        else:
            told.append((kind, item.content[0].text))
    return told


R, M = "reasoning", "message"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer", [(M, "answer")]),
        ("<think>why</think>answer", [(R, "why"), (M, "answer")]),
        ("<think>\nwhy\n</think>\n\nanswer", [(R, "\nwhy\n"), (M, "\n\nanswer")]),
        ("why</think>answer", [(R, "why"), (M, "answer")]),
        ("why</think>", [(R, "why")]),
        ("<think>why", [(R, "why")]),
        ("<think>why</thi", [(R, "why</thi")]),
        ("<think>a</think>x<think>b</think>y", [(R, "a"), (M, "x"), (R, "b"), (M, "y")]),
        ("<think>a</think><think>b</think>y", [(R, "a"), (R, "b"), (M, "y")]),
        ("<think>a</think>\n<think>b</think>\ny", [(R, "a"), (R, "b"), (M, "\ny")]),
        ("a</think>x<think>b</think>y", [(R, "a"), (M, "x"), (R, "b"), (M, "y")]),
        ("x<think>a</think>y<think>b", [(M, "x"), (R, "a"), (M, "y"), (R, "b")]),
        ("<think>\n\n</think>\n\nanswer", [(M, "\n\nanswer")]),
        ("<think></think>", [(M, "")]),
        ("a < b <th", [(M, "a < b <th")]),
        ("", [(M, "")]),
        ("\n", [(M, "\n")]),
    ],
)
def test_think_tags_in_the_text_become_reasoning_items(text, expected):
    assert plain(folded(Delta(content=text))) == expected


def test_without_splitting_the_tags_stay_in_the_text():
    assert plain(folded(Delta(content="<think>a</think>b"), split=False)) == [(M, "<think>a</think>b")]


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_the_engine_s_own_reasoning_becomes_an_item(field, split):
    delta = Delta(content="b <think>", **{field: "a"})
    assert plain(folded(delta, split=split)) == [(R, "a"), (M, "b <think>")]


def test_an_answer_cut_off_inside_a_block_that_the_template_opened_is_reasoning_when_so_told():
    items = folded(Delta(content="still thinking"), inside=True, cut_off=True)
    assert plain(items) == [(R, "still thinking")]
    assert items[0].status == "incomplete"


def test_white_space_around_a_call_makes_no_message():
    call = ToolCallDelta(FunctionDelta("f", "{}"), "c1")
    assert plain(folded(Delta(content="<think>a</think>\n\n", tool_calls=[call]))) == [
        (R, "a"),
        ("c1", "f", "{}"),
    ]


def pieces_of(text, cuts):
    edges = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[start:end] for start, end in zip(edges, edges[1:], strict=False)]


TEXTS = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "think>", "<thi", "a", " ", "\n", "b c", "é"]),
    max_size=12,
).map("".join)
CUTS = st.lists(st.integers(0, 200), max_size=12)


@given(TEXTS, CUTS, st.booleans())
def test_the_pieces_of_a_text_split_like_the_whole_of_it(text, cuts, inside):
    pieces = [Delta(content=piece) for piece in pieces_of(text, cuts)]
    assert plain(folded(*pieces, inside=inside)) == plain(folded(Delta(content=text), inside=inside))


@given(TEXTS, CUTS, st.booleans())
def test_splitting_loses_nothing_but_tags(text, cuts, inside):
    splitter = ThinkSplitter(inside=inside)
    segments = [
        segment for piece in pieces_of(text, cuts) for segment in splitter.feed(piece)
    ] + splitter.rest()
    kept = "".join(part for _, part in segments)
    position = 0
    for char in kept:  # what is kept is a subsequence of the text
        position = text.index(char, position) + 1
    assert len(text) - len(kept) in {
        7 * opens + 8 * closes for opens in range(13) for closes in (opens - 1, opens, opens + 1)
    }


CALLS = st.lists(st.tuples(st.sampled_from(["f", "g"]), st.text(alphabet='{"a":1}', max_size=9)), max_size=3)


@given(st.text(alphabet="ab \n", max_size=9), st.text(alphabet="xy \n", max_size=9), CALLS, CUTS, CUTS, CUTS)
def test_a_stream_folds_to_the_items_of_the_whole_answer(reasoning, text, calls, cuts, more_cuts, call_cuts):
    whole = Delta(
        content=text,
        reasoning=reasoning,
        tool_calls=[
            ToolCallDelta(FunctionDelta(name, args), f"c{n}") for n, (name, args) in enumerate(calls)
        ],
    )
    stream = [Delta(reasoning=piece) for piece in pieces_of(reasoning, cuts)]
    stream += [Delta(content=piece) for piece in pieces_of(text, more_cuts)]
    for n, (name, args) in enumerate(calls):
        stream.append(Delta(tool_calls=[ToolCallDelta(FunctionDelta(name, None), f"c{n}", n)]))
        stream += [
            Delta(tool_calls=[ToolCallDelta(FunctionDelta(None, piece), None, n)])
            for piece in pieces_of(args, call_cuts)
        ]
    assert folded(*stream, split=False) == folded(whole, split=False)


@given(TEXTS, CUTS)
def test_the_steps_of_a_fold_tell_the_same_story_as_its_items(text, cuts):
    fold = Fold("k", splitter=ThinkSplitter())
    steps = [step for piece in pieces_of(text, cuts) for step in fold.add(Delta(content=piece))]
    steps += fold.finish(cut_off=False)
    told: list[str] = []
    for step in steps:
        match step:
            case Opened(index):
                assert index == len(told)
                told.append("")
            case Grew(index, _, piece):
                assert index == len(told) - 1
                told[index] += piece
            case Closed(index, item):
                assert (index, item.content[0].text) == (len(told) - 1, told[index])
    assert told == [item.content[0].text for item in fold.items]


TAGS = ("<|think|>", "[/]")


@given(
    st.lists(st.tuples(st.booleans(), st.text(alphabet="ab<|[/]>", min_size=1, max_size=8)), max_size=5),
    st.integers(1, 5),
)
def test_other_tags_are_found_however_the_text_is_cut(blocks, size):
    blocks = [(inside, text) for inside, text in blocks if not any(tag in text for tag in TAGS)]
    marked = "".join(f"{TAGS[0]}{text}{TAGS[1]}" if inside else text for inside, text in blocks)
    whole, cut = (ThinkSplitter(tags=TAGS) for _ in "ab")
    expected = [*whole.feed(marked), *whole.rest()]
    pieces = [marked[start : start + size] for start in range(0, len(marked), size)]
    found = [segment for piece in pieces for segment in cut.feed(piece)] + cut.rest()
    for inside in (False, True):
        assert "".join(t for i, t in found if i is inside) == "".join(t for i, t in expected if i is inside)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|think|>why[/]so", [(True, "why"), (False, "so")]),
        ("why[/]so", [(True, "why"), (False, "so")]),
        ("<think>a</think>", [(False, "<think>a</think>")]),
    ],
)
def test_other_tags_take_the_place_of_think(text, expected):
    splitter = ThinkSplitter(inside=opens_in_reasoning(text, tags=TAGS), tags=TAGS)
    assert [part for part in [*splitter.feed(text), *splitter.rest()] if part[1]] == expected
