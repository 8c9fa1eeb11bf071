"""What the converter hands to the server: a call to make, and an answer to give. Values only."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from local_vllm.protocol.request import OpenAIFields
from local_vllm.protocol.tools import Toolbox

# Where an engine takes calls, below its base_url.
CHAT, COMPLETIONS, RESPONSES = "/chat/completions", "/completions", "/responses"


class Asked(Struct, frozen=True):
    """What a response tells about the Responses request that it answers."""

    request: OpenAIFields
    toolbox: Toolbox
    temperature: Any
    top_p: Any
    response_id: str
    created_at: int
    store: bool = True


class ChatCall(Struct, frozen=True):
    """One call to the engine, at `path` below its base_url.

    `settled` is an answer that needs no engine; then there is nothing to call.

    `session_hint` is the request's `prompt_cache_key`. `asked` is None when the client spoke Chat Completions
    itself: then the engine's answer goes back byte for byte. `hides_reasoning`: the engine's parser is to drop it.
    """

    body: bytes
    stream: bool
    model_asked: str | None
    session_hint: str | None = None
    wants_token_ids: bool = False
    asked: Asked | None = None
    settled: bytes | None = None
    path: str = CHAT
    hides_reasoning: bool = False


class Doubt(Struct, frozen=True):
    """Something suspicious about an answer. `about` is the same for all of a kind: the first is worth telling."""

    about: str
    message: str


class Answer(Struct, frozen=True):
    """What goes back to the client.

    `needs_tokenize`: the engine left out the prompt's token ids; POST `tokenize_body(call)` to /tokenize and
    convert again with what it says. `doubts` are worth a warning.
    """

    status: int
    body: bytes
    needs_tokenize: bool = False
    doubts: tuple[Doubt, ...] = ()
