"""What the judge is asked: a template with three fields, the system message before it, and the two labels."""

from __future__ import annotations

from collections.abc import Iterator
from string import Formatter

FIELDS = ("question", "expected_answer", "generated_answer")
NEEDED = FIELDS[1:]

EQUAL = "[[A=B]]"
NOT_EQUAL = "[[A!=B]]"

SYSTEM_MESSAGE = (
    "You grade answers. You are given a question and two answers to it, A and B. Decide whether A and B "
    "give the same answer to the question. How they are worded, formatted, rounded or explained does not "
    "matter; whether they are true does not matter either."
)

TEMPLATE = """\
Question:
{question}

Answer A:
{expected_answer}

Answer B:
{generated_answer}

Do A and B give the same answer to the question? Think it over briefly. Then end with [[A=B]] if they do, or \
with [[A!=B]] if they do not."""


def template_problems(template: str) -> Iterator[str]:
    """What is wrong with a template, in words that follow its key."""
    try:
        used = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as problem:
        yield f"is no template ({problem}); write braces that are no field as {{{{ and }}}}"
        return
    for name in sorted(used - set(FIELDS)):
        known = ", ".join(FIELDS)
        yield f"has the field {{{name}}}, and knows {known} only; write other braces as {{{{ and }}}}"
    for name in NEEDED:
        if name not in used:
            yield f"lacks the field {{{name}}}: the judge would not see it"
