"""The converter: a client's JSON -> the engine's JSON, and back. Knows nothing of HTTP, Ray or vLLM's
process; who calls the engine, and what happens when it does not answer, is left to the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from msgspec import Raw

from local_vllm.protocol import tokens
from local_vllm.protocol.calls import CHAT, COMPLETIONS, RESPONSES, Answer, Asked, ChatCall
from local_vllm.protocol.completion_answers import CompletionEvents, as_chat_answer
from local_vllm.protocol.completions import Render, completion_body
from local_vllm.protocol.doubts import doubts_of, token_doubt
from local_vllm.protocol.errors import ErrorFields, engine_failure, error_body, read_engine_error
from local_vllm.protocol.events import ResponseEvents
from local_vllm.protocol.fold import Fold
from local_vllm.protocol.keys import unpredictable_keys
from local_vllm.protocol.limits import check_items, check_messages
from local_vllm.protocol.logprobs import TokenTexts, texts_of_whole
from local_vllm.protocol.messages import History, ends_in_reasoning, to_messages
from local_vllm.protocol.native import NativeRequests
from local_vllm.protocol.overflow import Overflow, find_overflow, limit_that_fits
from local_vllm.protocol.passthrough import read_chat, without_developer
from local_vllm.protocol.peek import peek_model
from local_vllm.protocol.precedence import Fields, metadata_fields, overlay, raw_fields, with_lower_limit
from local_vllm.protocol.reasoning import THINK
from local_vllm.protocol.request import OpenAIFields, read_request
from local_vllm.protocol.response import Ending, ending, overflow_notes, response_object, usage_of
from local_vllm.protocol.settings import ConverterSettings
from local_vllm.protocol.splitting import Splitting
from local_vllm.protocol.supplied import NOTHING, Supplied, audio_urls, earlier_items, resolved
from local_vllm.protocol.to_chat import caller_fields, check, wants_logprobs
from local_vllm.protocol.tokens import NoTokens, StreamedTokens
from local_vllm.protocol.tools import read_tools
from local_vllm.protocol.whole_answer import attach_tokens, folded, read_answer

__all__ = ["Answer", "ChatCall", "Converter", "error_body", "peek_model", "tokenize_body"]

_TOKEN_FIELDS: Fields = {"logprobs": True, "return_token_ids": True}
_STREAM_FIELDS: Fields = {"stream": True, "stream_options": {"include_usage": True}}

_encode = msgspec.json.Encoder().encode


def tokenize_body(call: ChatCall) -> bytes:
    """What to POST to the engine's /tokenize when an Answer `needs_tokenize`."""
    return tokens.tokenize_body(call.body)


class Converter:
    """Converts the requests of one model server, and keeps nothing between them but what `Splitting` learns."""

    def __init__(
        self,
        settings: ConverterSettings,
        *,
        clock: Callable[[], float] = time.time,
        new_key: Callable[[], str] | None = None,
        render: Render | None = None,
    ) -> None:
        """`render` applies a chat template, for base models that are asked through /v1/completions."""
        self._settings = settings
        self._clock = clock
        self._new_key = new_key or unpredictable_keys().__next__
        server = raw_fields(settings.extra_body)
        if settings.chat_template_kwargs:
            server = overlay(server, raw_fields({"chat_template_kwargs": settings.chat_template_kwargs}))
        self._server_fields = server
        self._overrides = raw_fields(settings.sampling_overrides)
        self._splitting = Splitting(settings, renders=render is not None)
        self._unparsed = None if settings.uses_reasoning_parser else self._splitting.tags
        self._history = _history(settings)
        self._render = render
        self.native = NativeRequests(server, self._overrides)

    # ---- requests

    def to_chat(self, body: bytes, model: str) -> ChatCall:
        """A Responses request that holds all it speaks of, as a call to the engine. Raises RequestError."""
        return self.convert(self.read(body), model)

    def read(self, body: bytes) -> OpenAIFields:
        """A Responses request, decoded and checked; `supplied.wanted` says what it needs besides."""
        request = read_request(body)
        check(request, stores_responses=self._settings.stores_responses)
        if type(request.input) is list:
            most, max_image_mib = self._settings.max_input_items, self._settings.max_image_mib
            check_items(request.input, most, max_image_mib, size=len(body))
        return request

    def convert(self, request: OpenAIFields, model: str, supplied: Supplied = NOTHING) -> ChatCall:
        """A request, and what was fetched for it, as a call to the engine, where the model is `model`."""
        toolbox = read_tools(request.tools, request.tool_choice, hosted=self._settings.hosted_tools)
        fields = self._decide(metadata_fields(request.metadata), caller_fields(request, toolbox))
        wants_token_ids = self._add_token_fields(fields)
        earlier = earlier_items(supplied) if supplied.earlier else ()
        given = resolved(request.input, supplied) if type(request.input) is list else request.input
        messages = to_messages(
            request.instructions,
            given,
            earlier=earlier,
            audio=audio_urls(request, supplied) if request.metadata else (),
            history=self._history,
        )
        chat = {"model": model, "messages": messages, **fields}
        if request.stream:
            chat |= _STREAM_FIELDS
        chat |= self._splitting.prompt_field()
        asked = Asked(
            request,
            toolbox,
            fields.get("temperature"),
            fields.get("top_p"),
            f"resp_{self._new_key()}",
            int(self._clock()),
            request.store is not False and self._settings.stores_responses,
        )
        body, path = self._sent(chat)
        return ChatCall(
            body,
            bool(request.stream),
            request.model,
            request.prompt_cache_key,
            wants_token_ids,
            asked,
            self._settled(asked, given, model),
            path,
            _is(fields.get("include_reasoning"), b"false"),
        )

    def _sent(self, chat: dict[str, Any], *, param: str = "input") -> tuple[bytes, str]:
        """What goes to the engine, and where; `param` is what the client calls the messages."""
        if self._settings.use_completions_api:
            return completion_body(chat, self._render, param=param), COMPLETIONS
        return _encode(chat), CHAT

    def _settled(self, asked: Asked, given: Any, model: str) -> bytes | None:
        """The answer to a turn of reasoning alone, where the model is not to be asked again after one."""
        if self._settings.sequential_reasoning_allowed or type(given) is not list:
            return None
        if not ends_in_reasoning(given):
            return None
        end = Ending("incomplete", "content_filter")
        notes = {"not_asked": "the last turn holds reasoning only (sequential_reasoning_allowed: false)"}
        return self._without_engine(asked, end, model, notes)

    def chat_passthrough(self, body: bytes, model: str) -> ChatCall:
        """A Chat Completions request with the server's settings applied. Raises RequestError."""
        chat = read_chat(body)
        fields = self._decide(metadata_fields(chat.metadata), chat.fields)
        if self._settings.return_token_id_information:
            fields = _TOKEN_FIELDS | fields
        kept = chat.kept
        if "messages" in kept:
            check_messages(kept["messages"], self._settings.max_input_items, self._settings.max_image_mib)
        if self._settings.replace_developer_role_with_system:
            kept = without_developer(kept)
        sent, path = self._sent({"model": model, **kept, **fields}, param="messages")
        return ChatCall(sent, chat.stream, chat.model, chat.session_hint, path=path)

    def _decide(self, metadata: Fields, caller: Fields) -> Fields:
        fields = overlay(self._server_fields, metadata)
        fields = overlay(fields, caller)
        return overlay(fields, self._overrides) if self._overrides else fields

    def _add_token_fields(self, fields: Fields) -> bool:
        """Ask for ids and log probabilities when the settings, or the request itself, want token ids."""
        wanted = self._settings.return_token_id_information or _is(fields.get("return_token_ids"), b"true")
        if wanted:
            fields |= _TOKEN_FIELDS
        return wanted

    # ---- answers

    def to_response(self, call: ChatCall, answer: bytes, tokenized: bytes | None = None) -> Answer:
        """The engine's whole answer as a response; a chat call's goes back as chat's. Raises UpstreamError.

        `tokenized` is what the engine's /tokenize said, if an earlier Answer needed it.
        """
        asked = call.asked
        if call.path == COMPLETIONS:
            answer = as_chat_answer(answer, call.body)
        if asked is None:
            return Answer(200, answer)
        decoded = read_answer(call, answer)
        choice = decoded.choices[0]
        end = ending(choice.finish_reason)
        texts = texts_of_whole(answer, self._splitting.tags) if wants_logprobs(asked.request) else None
        cut_off = end.status != "completed"
        splitter = self._splitting.of_whole(call, choice.message, answer, cut_off=cut_off)
        output = folded(asked, choice.message, splitter, texts, cut_off=cut_off)
        found = attach_tokens(output, decoded, answer, tokenized) if call.wants_token_ids else None
        response = response_object(
            asked,
            model=decoded.model,
            output=output,
            end=end,
            usage=usage_of(decoded.usage),
            completed_at=int(self._clock()),
        )
        doubts = [*doubts_of(asked, output, whole=not cut_off, unparsed=self._unparsed)]
        if found is not None and (doubt := token_doubt(found, decoded.usage)):
            doubts.append(doubt)
        needs_tokenize = isinstance(found, NoTokens) and found.prompt_only and tokenized is None
        return Answer(200, _encode(response), needs_tokenize, tuple(doubts))

    def stream(self, call: ChatCall) -> ResponseEvents:
        """What makes events of the engine's stream, for a Responses call that asked for one."""
        asked: Asked = call.asked  # type: ignore[assignment]
        splitter = self._splitting.of_stream(call)
        texts = TokenTexts(self._splitting.tags) if wants_logprobs(asked.request) else None
        key = asked.response_id.removeprefix("resp_")
        kind: Callable[..., ResponseEvents] = ResponseEvents
        if call.path == COMPLETIONS:
            kind = partial(CompletionEvents, body=call.body)
        return kind(
            asked,
            peek_model(call.body) or "",
            Fold(
                key,
                splitter=splitter,
                callees=asked.toolbox.callees,
                tokens=texts,
                on_reasoning=self._splitting.learn,
            ),
            clock=self._clock,
            begins_after=splitter.begin_after if splitter and self._splitting.heeds_prompt(call) else None,
            texts=texts,
            tokens=StreamedTokens() if call.wants_token_ids else None,
            unparsed=self._unparsed,
        )

    def with_limit_that_fits(self, call: ChatCall, status: int, answer: bytes) -> ChatCall | None:
        """The call to make instead of one that the engine refused for its limit on tokens alone."""
        limit = limit_that_fits(status, read_engine_error(answer))
        if limit is None or call.path not in (CHAT, COMPLETIONS):
            return None
        body = with_lower_limit(call.body, limit)
        return msgspec.structs.replace(call, body=body) if body is not None else None

    def from_failure(self, call: ChatCall, status: int, answer: bytes) -> Answer:
        """The engine's error as OpenAI's; a prompt that is too long as an incomplete response, if so set."""
        error = read_engine_error(answer)
        overflow = find_overflow(status, error)
        responses = call.asked is not None or call.path == RESPONSES
        if overflow is None:
            return Answer(status, engine_failure(status, error, responses=responses))
        if call.asked is not None and self._settings.context_overflow == "incomplete":
            return self._incomplete(call.asked, overflow, call)
        param = "input" if responses else "messages"
        fields = ErrorFields(error.message, "invalid_request_error", param, "context_length_exceeded")
        return Answer(400, error_body(fields))

    def _incomplete(self, asked: Asked, overflow: Overflow, call: ChatCall) -> Answer:
        end = Ending("incomplete", "max_output_tokens")
        model = peek_model(call.body) or ""
        return Answer(200, self._without_engine(asked, end, model, overflow_notes(overflow)))

    def _without_engine(self, asked: Asked, end: Ending, model: str, notes: dict[str, str]) -> bytes:
        """A response without output; `notes` in its metadata say why."""
        response = response_object(
            asked, model=model, output=[], end=end, usage=None, completed_at=0, notes=notes
        )
        return _encode(response)


def _is(field: Any, json: bytes) -> bool:
    return type(field) is Raw and bytes(field) == json


def _history(settings: ConverterSettings) -> History:
    """Reasoning that is preserved in the text stands there whatever the rest says."""
    interleaved = "field" if settings.uses_interleaved_reasoning else "left_out"
    return History(
        developer_role="system" if settings.replace_developer_role_with_system else "developer",
        reasoning="text" if settings.preserve_reasoning_in_assistant_content else interleaved,
        tags=settings.reasoning_tags or THINK,
    )
