"""The default model, built once for the tests of this folder, and a reader of the script in a prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local_vllm.cpu.default_model import build_default_model
from local_vllm.cpu.default_tokenizer import DISTANCE_STEP, FIRST_DISTANCE_ID, MARK, added_tokens

STAND_IN_TEXT = {"e": "<|im_end|>", "t": "<think>", "T": "</think>", "c": "<tool_call>", "C": "</tool_call>"}
STAND_IN_TEXT |= {"l": "<", "w": " word", "f": "?"}


@pytest.fixture(scope="session")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_default_model(tmp_path_factory.mktemp("cpu") / "default-model")


@pytest.fixture(scope="session")
def tokenizer(default_model: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(default_model)


@pytest.fixture(scope="session")
def prompt_ids(tokenizer: Any) -> Callable[..., list[int]]:
    def ids(messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
        kwargs.setdefault("add_generation_prompt", True)
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
        return tokenizer(prompt, add_special_tokens=False)["input_ids"]

    return ids


@pytest.fixture(scope="session")
def said(tokenizer: Any, prompt_ids: Callable[..., list[int]]) -> Callable[..., str]:
    """What the model will say: the tokens at the distance that the prompt names, up to the end."""
    ids_of = added_tokens()
    spoken = {ids_of[MARK + letter]: text for letter, text in STAND_IN_TEXT.items()}

    def script(messages: list[dict[str, Any]] | str, **kwargs: Any) -> str:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        ids = prompt_ids(messages, **kwargs)
        (marker,) = (index for index, token_id in enumerate(ids) if token_id >= FIRST_DISTANCE_ID)
        distance = (ids[marker] - FIRST_DISTANCE_ID + 1) * DISTANCE_STEP
        assert distance == len(ids) - marker - 1
        text, plain = "", []
        for token_id in ids[-distance:]:
            if token_id in spoken:
                text, plain = text + tokenizer.decode(plain) + spoken[token_id], []
                if text.endswith("<|im_end|>"):
                    return text.removesuffix("<|im_end|>")
            else:
                plain.append(token_id)
        raise AssertionError("the script has no end")

    return script
