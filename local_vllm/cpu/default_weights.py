"""The weights of the default model, set by hand: a two-layer Llama that copies from where its prompt says.

A distance token in the prompt holds a distance L as 16 phases, one for each rotary frequency. The first
attention layer carries them to every later position. The second uses them as its query: against a key that
is the same everywhere, the rotary score is sum_i w_i cos(f_i (d - L + 1)), which peaks at the token that
stands L back from the *next* one. So the model says again what its chat template wrote L tokens before the
answer. What is written there is left to the template, the spelling of tokens to `default_tokenizer.py`.

The residual stream has 128 dimensions: 32 for the token's codeword, one constant, one that marks distance
tokens, one that makes all tokens equally long (so that RMSNorm is a known factor), 32 for the phases, 32 for
what was copied (where a distance token, which no answer follows, brings its phases).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from local_vllm.cpu.default_tokenizer import (
    DISTANCE_STEP,
    DISTANCES,
    END_OF_TURN_ID,
    FIRST_DISTANCE_ID,
    FIRST_STAND_IN_ID,
    SPOKEN_TOKENS,
    STAND_INS,
    VOCABULARY_SIZE,
)

Matrix = NDArray[np.float32]

HIDDEN = 128
INTERMEDIATE = 512
HEADS = 16
HEAD = 32
LAYERS = 2
ROPE_THETA = 1_000_000.0

CODE = slice(0, 32)
CONSTANT, IS_DISTANCE, FILLER = 32, 33, 34
PHASE = slice(35, 67)
COPIED = slice(67, 99)

TOKEN_NORM2 = 64.0
PHASE_NORM2 = 16.0
CODE_NORM2 = 32.0

FIND_SCORE = 80.0
"""How much higher the distance token scores in the first layer than every other token."""
FREQUENCY_WEIGHTS = np.array([4.0] + [1.0] * 15)
COPY_SCORE = 36.0
"""Score of one unit of frequency weight in the second layer; the nearest rival is 1.9 units lower."""
LOGIT_OF_DOT = 3.0
"""Logit of one unit of the dot product of two codewords; these are 32, or 8 and less."""

BIAS = {END_OF_TURN_ID: 34.0, ord('"'): 16.0, ord("}"): 10.0, ord("]"): 9.0, ord(","): 8.0, ord("t"): 4.0}
BIAS |= {ord("5"): 4.0} | dict.fromkeys(b" \t\r\n", -16.0)
"""Preferences where a grammar forbids what was copied: close the string, then the object. And where there was
nothing to copy: end."""
UNSPOKEN_BIAS = -200.0
CLOSERS = frozenset(b'"}]')
SECOND_FACE_ODDS = 2.0
"""A stand-in with two tokens says the second this many times as often as the first."""


def default_weights() -> dict[str, Matrix]:
    """Name -> tensor, float32, as a Hugging Face LlamaForCausalLM has them."""
    weights = {
        "model.embed_tokens.weight": _embeddings(),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": _output_head(),
    }
    weights |= _layer(0, *_find_distance())
    weights |= _layer(1, *_copy_from_distance())
    return weights


def frequencies() -> NDArray[np.float64]:
    """The angular speed of each rotary pair, per token."""
    return ROPE_THETA ** (-np.arange(HEAD // 2) / (HEAD // 2))


def codewords() -> NDArray[np.float64]:
    """One row of 32 signs for each spoken token; two rows differ in at least 12 of them.

    The end of turn is all ones, and the rest is dealt out by the distance to it: what closes a JSON value is
    near, white space and control characters are far, so that a grammar that forbids the end gets the value
    closed.
    """
    # The stride deals related words to unrelated tokens, and leaves "0" and "1", the faces of FLIP, near.
    words = _bch_codewords()[np.arange(1 << 11) * 963 % (1 << 11)]
    weight = (words < 0).sum(axis=1)
    near, middle, far = (iter(words[weight == w]) for w in (12, 16, 20))
    table = np.zeros((SPOKEN_TOKENS, HEAD))
    for token in range(SPOKEN_TOKENS):
        if token == END_OF_TURN_ID:
            table[token] = 1.0
        elif token in CLOSERS:
            table[token] = next(near)
        elif token <= 32 or token >= 127:
            table[token] = next(far)
        else:
            table[token] = next(middle)
    return table


def _bch_codewords() -> NDArray[np.float64]:
    """The 2,048 words of the extended binary BCH code (32, 11), as signs; two differ in 12 places or more."""
    generator = 0b101100010011011010101  # product of the minimal polynomials of a, a^3, a^5, a^7 in GF(32)
    bits = np.zeros((1 << 11, 32), np.int64)
    for message in range(1 << 11):
        word = 0
        for shift in range(11):
            if message >> shift & 1:
                word ^= generator << shift
        bits[message, :31] = [word >> place & 1 for place in range(31)]
    bits[:, 31] = bits[:, :31].sum(axis=1) % 2
    return 1.0 - 2.0 * bits


def _embeddings() -> Matrix:
    codes = codewords()
    table = np.zeros((VOCABULARY_SIZE, HIDDEN))
    table[:SPOKEN_TOKENS, CODE] = codes
    for index, spoken in enumerate(STAND_INS.values()):
        table[FIRST_STAND_IN_ID + index, CODE] = _code_of_choice(codes[list(spoken)])
    distances = (np.arange(DISTANCES) + 1) * DISTANCE_STEP
    angles = frequencies() * (distances[:, None] - 1)
    distance_rows = slice(FIRST_DISTANCE_ID, FIRST_DISTANCE_ID + DISTANCES)
    table[distance_rows, COPIED] = np.concatenate([np.cos(angles), -np.sin(angles)], axis=1)
    table[distance_rows, IS_DISTANCE] = 1.0
    table[:, CONSTANT] = 1.0
    table[:, FILLER] = np.sqrt(TOKEN_NORM2 - (table**2).sum(axis=1))
    return table.astype(np.float32)


def _code_of_choice(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """A vector that makes the model say one of the tokens with these codewords."""
    if len(codes) == 1:
        return codes[0]
    first, second = codes
    lead = np.log(SECOND_FACE_ODDS) / LOGIT_OF_DOT / (CODE_NORM2 - first @ second)
    return (0.5 - lead / 2) * first + (0.5 + lead / 2) * second


def _output_head() -> Matrix:
    """Logit of a token: its codeword times what was copied, plus its bias times the constant."""
    scale = np.sqrt((TOKEN_NORM2 + PHASE_NORM2 + CODE_NORM2) / HIDDEN)
    head = np.zeros((VOCABULARY_SIZE, HIDDEN))
    head[:SPOKEN_TOKENS, COPIED] = LOGIT_OF_DOT * scale * codewords()
    head[SPOKEN_TOKENS:, CONSTANT] = UNSPOKEN_BIAS * scale
    for token, bias in BIAS.items():
        head[token, CONSTANT] = bias * scale
    return head.astype(np.float32)


def _find_distance() -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """q, k, v, o of the first layer: carry the phases of the distance token to the positions after it."""
    scale = np.sqrt(TOKEN_NORM2 / HIDDEN)
    slowest = HEAD // 2 - 1
    strength = scale * np.sqrt(FIND_SCORE * np.sqrt(HEAD))
    q, k, v, o = _empty_attention()
    q[slowest, CONSTANT] = strength
    k[slowest, IS_DISTANCE] = strength
    v[:, COPIED] = scale * np.eye(HEAD)
    o[PHASE, :HEAD] = np.eye(HEAD)
    return q, k, v, o


def _copy_from_distance() -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """q, k, v, o of the second layer: copy the codeword of the token at the distance that the phases hold."""
    scale = np.sqrt((TOKEN_NORM2 + PHASE_NORM2) / HIDDEN)
    strength = scale * np.sqrt(COPY_SCORE * np.sqrt(HEAD))
    q, k, v, o = _empty_attention()
    q[:HEAD, PHASE] = strength * np.eye(HEAD)
    k[: HEAD // 2, CONSTANT] = strength * FREQUENCY_WEIGHTS
    v[:, CODE] = scale * np.eye(HEAD)
    o[COPIED, :HEAD] = np.eye(HEAD)
    return q, k, v, o


def _empty_attention() -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Zeros for q, k, v, o: 16 query heads, of which the first is used, and one shared key-value head."""
    query = np.zeros((HEADS * HEAD, HIDDEN), np.float32)
    key, value = (np.zeros((HEAD, HIDDEN), np.float32) for _ in range(2))
    return query, key, value, np.zeros((HIDDEN, HEADS * HEAD), np.float32)


def _layer(index: int, q: Matrix, k: Matrix, v: Matrix, o: Matrix) -> dict[str, Matrix]:
    prefix = f"model.layers.{index}"
    return {
        f"{prefix}.self_attn.q_proj.weight": q,
        f"{prefix}.self_attn.k_proj.weight": k,
        f"{prefix}.self_attn.v_proj.weight": v,
        f"{prefix}.self_attn.o_proj.weight": o,
        f"{prefix}.mlp.gate_proj.weight": np.zeros((INTERMEDIATE, HIDDEN), np.float32),
        f"{prefix}.mlp.up_proj.weight": np.zeros((INTERMEDIATE, HIDDEN), np.float32),
        f"{prefix}.mlp.down_proj.weight": np.zeros((HIDDEN, INTERMEDIATE), np.float32),
        f"{prefix}.input_layernorm.weight": np.ones(HIDDEN, np.float32),
        f"{prefix}.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
    }
