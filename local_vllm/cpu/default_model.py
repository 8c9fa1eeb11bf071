"""Builds the default model: a real Llama of under a million weights, from code, the same every time.

Its weights make it repeat what its chat template wrote (default_weights.py), so the template decides what it
says. Serving it is the engine's part. `python -m local_vllm.cpu.default_model DIRECTORY` does it by hand.

What it says, by the last user message:

    ordinary text               You said: <text>
    ordinary text, with tools   a call of the first tool, its required arguments filled by type: a string gets
                                the enum value or the capitalised word that the text has, an integer 1, a
                                boolean true
    (a tool result came last)   The tool answered: <result>; or The tools answered: <result>; <result>
    ECHO:<text>                 <text>
    THINK:<thought>|<text>      <think>, the thought, </think>, and the text
    CALL:<json>                 this tool call, {"name": ..., "arguments": {...}}, or this list of them
    THINKCALL:<thought>|<json>  a thought, then the call or calls
    REPEAT:<n>                  n words, one token each
    FLIP:<n>                    n times 0 or 1 at random, 1 twice as often: for seeds and log probabilities
    DUMP                        the messages and tools that the template was given, as JSON (also after a tool
                                result), with enable_thinking and reasoning_effort where they were given
    STEPS:<a>||<b>||...         one of the directives above for each turn of the model: calls, then an answer

`enable_thinking` and `plain_answers` are its `chat_template_kwargs`:

    (neither)                   an empty <think></think> opens an answer without a thought, because vLLM's
                                `--reasoning-parser qwen3` takes everything before </think> for reasoning
    enable_thinking: true       ordinary answers open with a short thought; `reasoning_effort` sets this too
    enable_thinking: false      no thought, and no block
    plain_answers: true         no block without a thought: for an engine without a reasoning parser

Every byte is a token. An answer is cut at 16,372 tokens, text that is quoted at 2,000 characters. The prompt
holds the answer after the conversation, in a part that no later prompt shows, so a conversation is the prefix
of its next turn's prompt. Conversation, answer and what is generated share 32,768 tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import save_file

from local_vllm.cpu.default_tokenizer import (
    END_OF_TURN_ID,
    TOKEN_IDS,
    VOCABULARY_SIZE,
    tokenizer_config,
    tokenizer_json,
)
from local_vllm.cpu.default_weights import (
    HEAD,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    ROPE_THETA,
    default_weights,
)

CONTEXT_TOKENS = 32_768
CONTENT_FILE = "content_version.txt"
"""Written last into the directory; holds what `content_version` said when it was built."""

_SOURCES = ("default_model.py", "default_weights.py", "default_tokenizer.py", "default_chat_template.jinja")


def build_default_model(directory: Path) -> Path:
    """Make `directory` hold the default model, and return it.

    Returns at once if it holds this version already. Several processes may call this at the same time: the
    directory appears whole, by renaming. Raises FileExistsError for a directory that this did not make.
    """
    directory = Path(directory).absolute()
    if _is_current(directory):
        return directory
    if directory.exists() and not (directory / CONTENT_FILE).exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is there and is no default model; name another directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
        built = Path(scratch) / "built"
        _write_model(built)
        _put_in_place(built, directory, aside=Path(scratch) / "former")
    return directory


def content_version() -> str:
    """Changes when anything that decides the content of the directory does."""
    here = Path(__file__).parent
    return hashlib.sha256(b"\0".join((here / name).read_bytes() for name in _SOURCES)).hexdigest()


def chat_template() -> str:
    """The Jinja source of the chat template."""
    return (Path(__file__).parent / "default_chat_template.jinja").read_text(encoding="utf-8")


def model_config() -> dict[str, object]:
    """The content of `config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_TOKENS,
        "rope_theta": ROPE_THETA,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": END_OF_TURN_ID,
        "pad_token_id": TOKEN_IDS["<|endoftext|>"],
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def _is_current(directory: Path) -> bool:
    try:
        return (directory / CONTENT_FILE).read_text() == content_version()
    except (FileNotFoundError, NotADirectoryError):
        return False


def _write_model(directory: Path) -> None:
    directory.mkdir()
    generation = {"eos_token_id": [END_OF_TURN_ID, TOKEN_IDS["<|endoftext|>"]]}
    for name, content in {
        "config.json": model_config(),
        "generation_config.json": generation,
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": tokenizer_config(chat_template(), CONTEXT_TOKENS),
    }.items():
        (directory / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    save_file(default_weights(), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod((directory / "config.json").stat().st_mode)
    (directory / CONTENT_FILE).write_text(content_version())


def _put_in_place(built: Path, directory: Path, *, aside: Path) -> None:
    """Rename `built` to `directory`, moving an older version to `aside`; another's of this version stays."""
    for _ in range(10):
        try:
            os.rename(built, directory)
            return
        except OSError:
            if _is_current(directory):
                return
        try:
            os.rename(directory, aside)
        except FileNotFoundError:
            continue
        shutil.rmtree(aside)
    raise OSError(f"could not put the default model at {directory}: something else keeps writing there")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m local_vllm.cpu.default_model DIRECTORY")
    print(build_default_model(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
