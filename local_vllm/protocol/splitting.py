"""Where the reasoning of an answer begins: in a field of its own, behind an opening tag, or at once, since the chat
template has written the tag. How a text is split from there is left to `reasoning.py`.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from local_vllm.protocol.calls import CHAT, COMPLETIONS, ChatCall
from local_vllm.protocol.chat import Delta
from local_vllm.protocol.completions import prompt_of
from local_vllm.protocol.precedence import Fields
from local_vllm.protocol.reasoning import THINK, ThinkSplitter, ends_in_opening, opens_in_reasoning
from local_vllm.protocol.settings import ConverterSettings

_NO_FIELDS: Fields = {}
_PROMPT_FIELD: Fields = {"return_prompt_text": True}


class _Prompt(Struct, gc=False):
    prompt_text: str | None = None


_decode_prompt = msgspec.json.Decoder(_Prompt).decode


class Splitting:
    """Decides for the answers of one model server's engines, and learns from them whether a parser of their own
    takes reasoning out of the text. Then a text that comes without any is an answer, whatever the prompt ends in.
    """

    def __init__(self, settings: ConverterSettings, *, renders: bool) -> None:
        """`renders` is whether a base model's prompts are made here."""
        self.tags = settings.reasoning_tags or THINK
        self._splits = settings.uses_reasoning_parser
        self._renders = renders
        self._opens = settings.chat_template_opens_reasoning
        self._tells_prompt = self._splits and not settings.use_completions_api
        self._is_parsed = settings.engine_parses_reasoning

    def learn(self) -> None:
        """An engine has given reasoning in a field of its own."""
        self._is_parsed = True

    def prompt_field(self) -> Fields:
        """What asks the engine for its prompt, which shows whether the chat template has opened a block."""
        return _PROMPT_FIELD if self._tells_prompt and not self._is_parsed else _NO_FIELDS

    def of_stream(self, call: ChatCall) -> ThinkSplitter | None:
        if not self._splits:
            return None
        inside = self._rendered(call)
        if inside is None:
            inside = self._opens and not self._leaves_out(call)
        return ThinkSplitter(inside=inside, tags=self.tags)

    def heeds_prompt(self, call: ChatCall) -> bool:
        """Whether a stream begins inside a block when the prompt that comes with it ends in an opening tag."""
        return self._splits and not self._leaves_out(call)

    def of_whole(
        self, call: ChatCall, message: Delta, answer: bytes, *, cut_off: bool
    ) -> ThinkSplitter | None:
        """`answer` is what the engine said, its prompt perhaps included."""
        if message.reasoning or message.reasoning_content:
            self.learn()
        if not self._splits or not message.content:
            return None
        inside = self._rendered(call)
        if inside is None:
            inside = self._begins_inside(call, message.content, answer, cut_off)
        return ThinkSplitter(inside=inside, tags=self.tags)

    def _begins_inside(self, call: ChatCall, text: str, answer: bytes, cut_off: bool) -> bool:
        """A whole text shows it by a tag that closes what it did not open, unless the prompt says otherwise."""
        may_be_unclosed = cut_off and not self._leaves_out(call)
        if not opens_in_reasoning(text, tags=self.tags, unclosed=may_be_unclosed):
            return False
        prompt = _decode_prompt(answer).prompt_text
        if prompt is not None:
            return ends_in_opening(prompt, self.tags)
        return opens_in_reasoning(text, tags=self.tags, unclosed=may_be_unclosed and self._opens)

    def _leaves_out(self, call: ChatCall) -> bool:
        """Whether the engine leaves no reasoning in its text; where it is asked for completions it parses none."""
        return call.path == CHAT and (call.hides_reasoning or self._is_parsed)

    def _rendered(self, call: ChatCall) -> bool | None:
        """Whether a prompt that was made here has opened a block; None where the engine makes it."""
        if not self._renders or call.path != COMPLETIONS:
            return None
        return ends_in_opening(prompt_of(call.body), self.tags)
