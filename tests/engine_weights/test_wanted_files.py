"""Which files of well-known kinds of repositories are fetched: those that vLLM loads, in one format."""

from __future__ import annotations

import json

import pytest

from local_vllm.engine.wanted_files import index_name, indexed_files, wanted_files

SMALL = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"
ORIGINAL = ["original/consolidated.00.pth", "original/params.json", "original/tokenizer.model"]
MISTRAL = ["consolidated.safetensors", "params.json", "tokenizer.model.v3"]


def left_out(names: list[str], load_format: str = "auto", indexed: list[str] | None = None) -> set[str]:
    return set(names) - set(wanted_files(names, load_format, indexed or []))


def test_tokenizers_templates_and_code_are_wanted_and_papers_are_not() -> None:
    code = [
        "modeling_x.py",
        "merges.txt",
        "vocab.json",
        "qwen.tiktoken",
        "tokenizer.model",
        "additional_chat_templates/a.jinja",
    ]
    readers = [".gitattributes", "README.md", "figures/benchmark.png", "paper.pdf"]
    assert left_out([*SMALL, *code, *readers, "model.safetensors"]) == set(readers)


def test_of_a_llama_its_original_folder_is_left_out() -> None:
    assert left_out([*SMALL, *SHARDS, INDEX, *ORIGINAL], indexed=SHARDS) == set(ORIGINAL)


def test_of_gpt_oss_the_copies_for_other_programs_are_left_out() -> None:
    copies = ["original/model.safetensors", "original/config.json", "original/dtypes.json", "metal/model.bin"]
    assert left_out([*SMALL, *SHARDS, INDEX, *copies], indexed=SHARDS) == set(copies)


def test_of_a_mistral_its_own_weights_are_taken_as_vllm_does() -> None:
    names = [*SMALL, *SHARDS, INDEX, *MISTRAL]
    assert left_out(names) == set(SHARDS)
    assert left_out(names, "mistral") == set(SHARDS)
    assert index_name(names) is None, "the index of the shards says nothing of Mistral's own weights"


@pytest.mark.parametrize("load_format", ["hf", "safetensors", "runai_streamer"])
def test_of_a_mistral_the_shards_are_taken_when_the_flags_say_so(load_format: str) -> None:
    names = [*SMALL, *SHARDS, INDEX, *MISTRAL]
    assert left_out(names, load_format, SHARDS) == {"consolidated.safetensors"}
    assert index_name(names, load_format) == INDEX


def test_weights_in_mistrals_format_alone_are_wanted_whatever_the_format() -> None:
    for load_format in ("auto", "mistral", "hf", "safetensors"):
        assert left_out([*SMALL, *MISTRAL], load_format) == set()


def test_bin_files_are_wanted_where_there_is_nothing_else() -> None:
    names = [
        *SMALL,
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    ]
    assert left_out([*names, "training_args.bin", "optimizer.pt", "flax_model.msgpack", "tf_model.h5"]) == {
        "training_args.bin",
        "optimizer.pt",
        "flax_model.msgpack",
        "tf_model.h5",
    }


def test_bin_files_are_left_out_where_there_are_safetensors() -> None:
    assert left_out([*SMALL, "model.safetensors", "pytorch_model.bin"]) == {"pytorch_model.bin"}
    assert left_out([*SMALL, "model.safetensors", "pytorch_model.bin"], "npcache") == {"model.safetensors"}


def test_small_heads_beside_the_weights_are_wanted() -> None:
    heads = ["colbert_linear.pt", "sparse_linear.pt", "mtp.safetensors"]
    names = [*SMALL, *SHARDS, *heads, "pytorch_model.bin", "onnx/model.onnx", "onnx/model.onnx_data"]
    assert left_out(names, indexed=SHARDS) == {"pytorch_model.bin", "onnx/model.onnx", "onnx/model.onnx_data"}


def test_parts_in_folders_come_in_one_format() -> None:
    parts = [
        "1_Dense/model.safetensors",
        "2_Dense/pytorch_model.bin",
        "vision-lora/adapter_model.safetensors",
    ]
    names = [
        *SMALL,
        "model.safetensors",
        *parts,
        "1_Dense/pytorch_model.bin",
        "checkpoint-500/model.safetensors",
    ]
    assert left_out(names) == {"1_Dense/pytorch_model.bin", "checkpoint-500/model.safetensors"}


def test_a_second_copy_that_the_index_does_not_name_is_left_out() -> None:
    names = [*SMALL, *SHARDS, INDEX, "model.safetensors", "model.fp16.safetensors"]
    assert left_out(names, indexed=SHARDS) == {"model.safetensors", "model.fp16.safetensors"}


def test_gguf_files_are_left_out() -> None:
    assert left_out([*SMALL, "model-Q4_K_M.gguf"]) == {"model-Q4_K_M.gguf"}


def test_without_real_weights_none_are_wanted() -> None:
    assert left_out([*SMALL, *SHARDS, INDEX, "1_Dense/model.safetensors"], "dummy") == {
        *SHARDS,
        "1_Dense/model.safetensors",
    }


def test_a_format_that_is_not_known_gets_all_weights() -> None:
    assert left_out([*SMALL, *SHARDS, "model-rank-0-part-0.safetensors", "a.bin"], "sharded_state") == set()


def test_the_index_is_read_and_nonsense_in_it_is_none() -> None:
    index = json.dumps({"metadata": {}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}})
    assert indexed_files(index) == set(SHARDS)
    assert indexed_files("[]") == indexed_files("{") == indexed_files('{"weight_map": 3}') == set()
