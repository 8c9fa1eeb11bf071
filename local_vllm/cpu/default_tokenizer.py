"""The vocabulary of the default model: one token a byte, plus those that its chat template speaks with.

Knows ids and spellings, and writes them as a `tokenizer.json`. What the model does with a token is in
`default_weights.py`, what the template does with it in `default_chat_template.jinja`.

    ids    0 .. 255   bytes
         256          " word", which no text is encoded to: only REPEAT writes it
         257 .. 263   <|endoftext|> <|im_start|> <|im_end|> <think> </think> <tool_call> </tool_call>
         264 .. 271   stand-ins: what the template writes where the model shall say another token
         272 .. 783   distances: how far back the model copies from, in steps of DISTANCE_STEP tokens

The tokenizers library numbers added tokens itself, without a gap after the bytes and " word". The
vocabulary's size is rounded up, so that any tensor parallel size divides it.
"""

from __future__ import annotations

from typing import Any

VOCABULARY_SIZE = 1024
DISTANCE_STEP = 32
DISTANCES = 512
FIRST_DISTANCE_ID = 272

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAG_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
WORD = " word"
MARK = "\U0010fff0"
"""Begins the spelling of every token that stands only in prompts. A code point for private use: the template
replaces it where it comes from outside, so that nobody else can write those tokens."""

TOKEN_IDS = {token: 256 + index for index, token in enumerate((WORD, *CONTROL_TOKENS, *TAG_TOKENS))}
END_OF_TURN_ID = TOKEN_IDS["<|im_end|>"]

STAND_INS: dict[str, tuple[int, ...]] = {
    MARK + "e": (END_OF_TURN_ID,),
    MARK + "t": (TOKEN_IDS["<think>"],),
    MARK + "T": (TOKEN_IDS["</think>"],),
    MARK + "c": (TOKEN_IDS["<tool_call>"],),
    MARK + "C": (TOKEN_IDS["</tool_call>"],),
    MARK + "l": (ord("<"),),
    MARK + "w": (TOKEN_IDS[WORD],),
    MARK + "f": (ord("0"), ord("1")),
}
"""Spelling of a stand-in -> the tokens that the model says for it: one of them at random if there are two."""

FIRST_STAND_IN_ID = 264
SPOKEN_TOKENS = FIRST_STAND_IN_ID
"""Ids below this one can be generated."""


def distance_token(distance: int) -> str:
    """The spelling of the token that makes the model copy from `distance` tokens back."""
    return f"{MARK}d{distance // DISTANCE_STEP};"


def byte_alphabet() -> list[str]:
    """The visible character that a byte-level vocabulary writes for each byte, in the order of the bytes."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def added_tokens() -> dict[str, int]:
    """Spelling -> id of every token that is matched in the text before its bytes are."""
    tokens = {token: TOKEN_IDS[token] for token in (*CONTROL_TOKENS, *TAG_TOKENS)}
    tokens |= {token: FIRST_STAND_IN_ID + index for index, token in enumerate(STAND_INS)}
    tokens |= {
        distance_token((index + 1) * DISTANCE_STEP): FIRST_DISTANCE_ID + index for index in range(DISTANCES)
    }
    return tokens


def tokenizer_json() -> dict[str, Any]:
    """The content of `tokenizer.json`: a byte-level BPE without merges."""
    alphabet = byte_alphabet()
    word = "".join(alphabet[byte] for byte in WORD.encode())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(token, token_id) for token, token_id in added_tokens().items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {**{character: byte for byte, character in enumerate(alphabet)}, word: TOKEN_IDS[WORD]},
            "merges": [],
        },
    }


def tokenizer_config(chat_template: str, context_tokens: int) -> dict[str, Any]:
    """The content of `tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_tokens,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }


def _added_token(token: str, token_id: int) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": token not in TAG_TOKENS,
    }
