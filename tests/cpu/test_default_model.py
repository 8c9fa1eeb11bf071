"""The default model as files: the same every time, divisible, and a transformer that copies as it should."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from local_vllm.cpu.default_model import (
    CONTENT_FILE,
    CONTEXT_TOKENS,
    build_default_model,
    chat_template,
    content_version,
    model_config,
)
from local_vllm.cpu.default_tokenizer import (
    DISTANCE_STEP,
    DISTANCES,
    END_OF_TURN_ID,
    MARK,
    VOCABULARY_SIZE,
    added_tokens,
)
from local_vllm.cpu.default_weights import FREQUENCY_WEIGHTS, codewords, frequencies

Ids = Callable[..., list[int]]


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_two_builds_are_the_same_byte_for_byte(default_model: Path, tmp_path: Path) -> None:
    assert hashes(build_default_model(tmp_path / "again")) == hashes(default_model)


def test_it_is_small_and_quickly_built(tmp_path: Path) -> None:
    started = time.monotonic()
    built = build_default_model(tmp_path / "model")
    assert time.monotonic() - started < 3
    assert sum(path.stat().st_size for path in built.iterdir()) < 5_000_000


def test_a_second_build_touches_nothing(tmp_path: Path) -> None:
    built = build_default_model(tmp_path / "model")
    before = {path.name: path.stat().st_mtime_ns for path in built.iterdir()}
    build_default_model(tmp_path / "model")
    assert {path.name: path.stat().st_mtime_ns for path in built.iterdir()} == before


def test_another_version_is_replaced_as_a_whole(tmp_path: Path) -> None:
    built = build_default_model(tmp_path / "model")
    (built / CONTENT_FILE).write_text("an older one")
    (built / "left-over").write_text("")
    build_default_model(tmp_path / "model")
    assert (built / CONTENT_FILE).read_text() == content_version()
    assert not (built / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_that_is_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="another directory"):
        build_default_model(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_eight_builders_at_once_leave_one_whole_model(default_model: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(max_workers=8) as pool:
        built = set(pool.map(build_default_model, [tmp_path / "model"] * 8))
    assert built == {tmp_path / "model"}
    assert hashes(tmp_path / "model") == hashes(default_model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_command_line_builds_it_without_torch(tmp_path: Path) -> None:
    code = f"import runpy, sys; sys.argv[1:] = [{str(tmp_path / 'model')!r}]; " + (
        "runpy.run_module('local_vllm.cpu.default_model', run_name='__main__'); "
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == str(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").exists()


@pytest.mark.parametrize("tensor_parallel_size", [1, 2, 4, 8, 16])
def test_the_shape_divides_for_tensor_parallelism(tensor_parallel_size: int) -> None:
    config = model_config()
    for key in ("num_attention_heads", "vocab_size", "intermediate_size"):
        assert config[key] % tensor_parallel_size == 0  # type: ignore[operator]
    assert config["num_key_value_heads"] == 1  # vLLM gives every worker its own copy of a single one


def test_there_is_a_layer_for_each_of_two_pipeline_stages() -> None:
    assert model_config()["num_hidden_layers"] == 2


def test_the_vocabulary_holds_every_token_at_its_id(default_model: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(default_model / "tokenizer.json"))
    assert {token: tokenizer.token_to_id(token) for token in added_tokens()} == added_tokens()
    assert max(added_tokens().values()) < VOCABULARY_SIZE
    assert tokenizer.encode("é <think> word").ids == [0xC3, 0xA9, 32, 260, *b" word"]


def test_the_template_agrees_with_the_vocabulary() -> None:
    template = chat_template()
    assert f"set mark = '\\U{ord(MARK):08x}'" in template
    assert f"set step, longest = {DISTANCE_STEP}, {DISTANCE_STEP * DISTANCES}" in template
    assert len("assistant\n") + 1 == 11
    assert "set header_tokens = 11" in template


def test_the_stated_end_of_turn_is_the_one_that_ends_generation(default_model: Path) -> None:
    generation = json.loads((default_model / "generation_config.json").read_text())
    assert generation["eos_token_id"][0] == END_OF_TURN_ID == added_tokens()["<|im_end|>"]


def test_vllm_gives_the_template_text_and_leaves_the_developer_role() -> None:
    jinja2 = pytest.importorskip("jinja2")
    loops = jinja2.Environment().parse(chat_template()).find_all(jinja2.nodes.For)
    over_messages = {loop.target.name for loop in loops if getattr(loop.iter, "name", "") == "messages"}
    assert over_messages == {"message"}
    assert "message.content" not in chat_template() and "message['content']" not in chat_template()
    assert "'developer'" in chat_template()


def test_codewords_are_far_apart() -> None:
    dots = codewords() @ codewords().T
    assert (np.diag(dots) == 32).all()
    assert (dots - 32 * np.eye(len(dots))).max() <= 8


def test_the_copying_score_has_one_peak_within_the_context() -> None:
    away = np.arange(1, CONTEXT_TOKENS)
    drop = FREQUENCY_WEIGHTS @ (1 - np.cos(frequencies()[:, None] * away))
    assert drop.min() > 1.9


class Llama:
    """A Llama in numpy: logits of the last position, with the keys and values of the earlier ones kept."""

    def __init__(self, directory: Path) -> None:
        self.weights = load_file(directory / "model.safetensors")
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self.cache: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def norm(self, x: NDArray[Any], name: str) -> NDArray[Any]:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * self.weights[name]

    def rotate(self, x: NDArray[Any], first: int) -> NDArray[Any]:
        half = x.shape[-1] // 2
        speed = 1 / np.float32(self.config["rope_theta"]) ** (np.arange(half, dtype=np.float32) / half)
        position = np.arange(first, first + len(x), dtype=np.float32)
        angle = (position[:, None] * speed)[:, None]
        left, right = x[..., :half], x[..., half:]
        return np.concatenate(
            [left * np.cos(angle) - right * np.sin(angle), right * np.cos(angle) + left * np.sin(angle)], -1
        )

    def attend(self, x: NDArray[Any], layer: int) -> NDArray[Any]:
        prefix = f"model.layers.{layer}.self_attn"
        weights = {name: self.weights[f"{prefix}.{name}_proj.weight"] for name in "qkvo"}
        size, first = self.config["head_dim"], len(self.cache[layer][0]) if layer < len(self.cache) else 0
        queries = self.rotate((x @ weights["q"].T).reshape(len(x), -1, size), first)
        key = self.rotate((x @ weights["k"].T)[:, None], first)[:, 0]
        value = x @ weights["v"].T
        if first:
            key, value = (np.concatenate(pair) for pair in zip(self.cache[layer], (key, value), strict=True))
            self.cache[layer] = key, value
        else:
            self.cache.append((key, value))
        scores = np.einsum("qhd,kd->hqk", queries, key) / math.sqrt(size)
        hidden = np.arange(len(key))[None, :] > np.arange(first, first + len(x))[:, None]
        scores = np.where(hidden, -np.inf, scores)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        return np.einsum("hqk,kd->qhd", shares, value).reshape(len(x), -1) @ weights["o"].T

    def __call__(self, ids: list[int]) -> NDArray[Any]:
        x = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            x = x + self.attend(self.norm(x, f"model.layers.{layer}.input_layernorm.weight"), layer)
        return self.norm(x[-1], "model.norm.weight") @ self.weights["lm_head.weight"].T


def probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    shares = np.exp(logits.astype(np.float64) - logits.max())
    return shares / shares.sum()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("ECHO:Hello, naïve 日本!", "<think></think>Hello, naïve 日本!"),
        ("THINK:a|b", "<think>\na\n</think>\n\nb"),
        ("REPEAT:3", "<think></think>word word word"),
        ("ECHO:" + "0123456789" * 40, "<think></think>" + "0123456789" * 40),
    ],
)
def test_the_weights_say_the_script_and_end_at_any_temperature_up_to_1(
    text: str, answer: str, default_model: Path, tokenizer: Any, prompt_ids: Ids
) -> None:
    llama, said = Llama(default_model), []
    logits = llama(prompt_ids([{"role": "user", "content": text}]))
    while not said or said[-1] != END_OF_TURN_ID:
        assert probabilities(logits).max() > 1 - 1e-12
        said.append(int(logits.argmax()))
        assert len(said) < 1000
        logits = llama(said[-1:])
    assert tokenizer.decode(said) == answer + "<|im_end|>"


def test_a_flip_is_1_twice_as_often_as_0(default_model: Path, prompt_ids: Ids) -> None:
    logits = Llama(default_model)(prompt_ids([{"role": "user", "content": "FLIP:2"}], enable_thinking=False))
    chances = probabilities(logits)
    assert chances[ord("0")] == pytest.approx(1 / 3, abs=0.02)
    assert chances[ord("1")] == pytest.approx(2 / 3, abs=0.02)
    assert chances[ord("0")] + chances[ord("1")] > 1 - 1e-9


def test_a_prompt_without_a_script_is_answered_with_the_end(default_model: Path, prompt_ids: Ids) -> None:
    messages = [{"role": "user", "content": "Hello there, model."}]
    logits = Llama(default_model)(prompt_ids(messages, add_generation_prompt=False))
    assert logits.argmax() == END_OF_TURN_ID
