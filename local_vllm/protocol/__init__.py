"""Responses API -> Chat Completions -> Responses API, as functions on JSON bytes. HTTP, engines and retries
are left to `serving`.
"""

from __future__ import annotations

from local_vllm.protocol.calls import Answer, ChatCall
from local_vllm.protocol.converter import Converter, peek_model, tokenize_body
from local_vllm.protocol.errors import error_body
from local_vllm.protocol.settings import ConverterSettings

__all__ = [
    "Answer",
    "ChatCall",
    "Converter",
    "ConverterSettings",
    "error_body",
    "peek_model",
    "tokenize_body",
]
