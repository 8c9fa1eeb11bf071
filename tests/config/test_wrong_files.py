"""What wrong config files are answered with: the exact lines, all of them at once."""

from __future__ import annotations

import pytest

from local_vllm.config import lookup

FILES = {
    "unknown key": (
        "m: {responses_api_models: {vllm_model: {base_url: 'http://a/v1', model: m, apikey: x}}}",
        ["m.responses_api_models.vllm_model.apikey: unknown key; did you mean `api_key`?"],
    ),
    "both spellings": (
        "m: {responses_api_models: {vllm_model: {base_url: 'http://a/v1', model: m, model_name: x}}}",
        ["m.responses_api_models.vllm_model.model_name: unknown key; did you mean `model`?"],
    ),
    "missing": (
        "m: {responses_api_models: {vllm_model: {}}}",
        [
            (
                "m.responses_api_models.vllm_model.base_url: "
                "is required: URL of the engine, ending in /v1; many as a list or with commas."
            ),
            (
                "m.responses_api_models.vllm_model.model: "
                "is required: The model's name, as the engine serves it."
            ),
        ],
    ),
    "dangling": (
        (
            "my_url: "
            "http://a/v1\nm:\n  responses_api_models:\n    vllm_model:\n      base_url: "
            "${my_ulr}\n      model: ???"
        ),
        [
            (
                "m.responses_api_models.vllm_model.base_url: "
                "`${my_ulr}` leads nowhere: "
                "set my_ulr in env.yaml, or on the command line as +my_ulr=...; did you mean `${my_url}`?"
            ),
            "m.responses_api_models.vllm_model.model: must be filled: it is ??? in the config file",
        ],
    ),
    "to a gap": (
        "name: ???\nm: {responses_api_models: {vllm_model: {base_url: 'http://a/v1', model: '${name}'}}}",
        [
            (
                "m.responses_api_models.vllm_model.model: "
                "`${name}` is ???: set name in env.yaml, or on the command line as +name=..."
            )
        ],
    ),
    "in a circle": (
        "a: ${b}\nb: ${a}\nm: {responses_api_models: {vllm_model: {base_url: 'http://a/v1', model: '${a}'}}}",
        [
            (
                "m.responses_api_models.vllm_model.model: "
                "`${a}` cannot be resolved: Recursive interpolation detected"
            )
        ],
    ),
    "environment": (
        (
            "m: "
            "{responses_api_models: "
            "{vllm_model: {base_url: 'http://a/v1', model: '${oc.env:NOT_SET_ANYWHERE}'}}}"
        ),
        [
            (
                "m.responses_api_models.vllm_model.model: "
                "`${oc.env:NOT_SET_ANYWHERE}` cannot be resolved: "
                "\"Environment variable 'NOT_SET_ANYWHERE' not found\""
            )
        ],
    ),
    "no server": (
        "m: {responses_api_models: {vllm_model: {base_url: 'http://a/v1', model: m}}}\n"
        "p: "
        "{responses_api_models: "
        "{local_vllm_model_proxy: {model_server: {type: responses_api_models, name: n}}}}",
        [
            (
                "p.responses_api_models.local_vllm_model_proxy.model_server.name: "
                "there is no server `n`; known here: m"
            )
        ],
    ),
    "no engine of ours": (
        "m: {responses_api_models: {vllm_model: {base_url: 'http://a/v1', model: m}}}\n"
        "p: {responses_api_models: {local_vllm_model_proxy: {model_server: m}}}",
        [
            (
                "p.responses_api_models.local_vllm_model_proxy.model_server.name: "
                "`m` is no local_vllm_model: a proxy shares the engine of one"
            )
        ],
    ),
    "proxy with a model": (
        "p: {responses_api_models: {local_vllm_model_proxy: {model_server: policy_model, model: m}}}",
        [
            "p.responses_api_models.local_vllm_model_proxy.model: unknown key",
            (
                "p.responses_api_models.local_vllm_model_proxy.model_server.name: "
                "there is no model server: add a model's config to config_paths"
            ),
        ],
    ),
    "unknown kind": (
        "m: {responses_api_model: {vllm_model: {}}}",
        [
            (
                "m: "
                "is neither a server nor a global key: "
                "did you mean `responses_api_models` where it says `responses_api_model`?"
            )
        ],
    ),
    "unknown implementation": (
        "m: {responses_api_models: {vlm_model: {}}}",
        ["m.responses_api_models.vlm_model: unknown implementation; did you mean `vllm_model`?"],
    ),
    "our own gateway": (
        "m: {responses_api_models: {vllm_model: {base_url: 'http://localhost:11000/v1', model: m}}}",
        [
            (
                "m.responses_api_models.vllm_model.base_url: "
                "http://localhost:11000/v1 is this run's own gateway, not an engine"
            )
        ],
    ),
    "not a url": (
        "m: {responses_api_models: {vllm_model: {base_url: [a:80, 'http://a/v1'], model: m}}}",
        [
            (
                "m.responses_api_models.vllm_model.base_url: "
                "must be a URL that begins with http:// or https://, not 'a:80'"
            )
        ],
    ),
    "secret of a wrong type": (
        "m: {responses_api_models: {vllm_model: {base_url: 'http://a/v1', model: m, api_key: [sk-1]}}}",
        ["m.responses_api_models.vllm_model.api_key: must be text"],
    ),
}


@pytest.mark.parametrize(("text", "lines"), FILES.values(), ids=FILES)
def test_a_wrong_file_is_answered_with_all_that_is_wrong(problems, write, text, lines):
    write("a.yaml", text)

    assert problems("+config_paths=[a.yaml]") == lines


def test_malformed_yaml_is_told_with_file_line_and_column(problems, write):
    file = write("a.yaml", "a:\n  b: [1,\nc: 2\n")

    assert problems("+config_paths=[a.yaml]") == [
        f"{file}:4:1: is not YAML: expected ',' or ']', but got '<stream end>'"
    ]


def test_a_key_that_stands_twice_is_told_with_its_line(problems, write):
    file = write("a.yaml", "a: 1\nb: 2\na: 3\n")

    assert problems("+config_paths=[a.yaml]") == [f"{file}:3:1: is not YAML: found duplicate key a"]


def test_a_config_that_is_not_found_is_told_with_every_place_and_the_nearest_name(problems, tmp_path):
    name = "responses_api_models/local_vllm_model/configs/Qwen/Qwen3-4b-x.yaml"
    shipped = lookup.shipped_configs()

    (line,) = problems(f"+config_paths=[{name}]")

    assert line.startswith(f"config_paths: `{name}` was not found; looked at {tmp_path / name}, ")
    assert str(shipped / "Qwen/Qwen3-4b-x.yaml") in line
    assert line.endswith("; did you mean Qwen/Qwen3-4B.yaml?")


def test_a_nested_config_that_is_not_found_is_told_with_the_file_that_names_it(problems, write):
    file = write("sub/a.yaml", "config_paths: [nope.yaml]")

    (line,) = problems("+config_paths=[sub/a.yaml]")

    assert line.startswith(
        f"{file}: config_paths: `nope.yaml` was not found; looked at {file.parent / 'nope.yaml'}, "
    )


def test_files_that_name_each_other_are_told_as_a_circle(problems, write):
    write("a.yaml", "config_paths: [b.yaml]")
    file = write("b.yaml", "config_paths: [a.yaml]")

    assert problems("+config_paths=[a.yaml]") == [
        f"{file}: config_paths: the files name each other in a circle: a.yaml -> b.yaml -> a.yaml"
    ]


def test_what_a_missing_file_may_explain_is_not_reported(problems, write):
    write("a.yaml", "m:\n  responses_api_models:\n    vllm_model:\n      model: ${x}\n      num_workers: 0\n")

    lines = problems("+config_paths=[a.yaml,nope.yaml]", "+y=1", "+z")

    assert [line.split(":")[0] for line in lines] == [
        "command line",
        "config_paths",
        "m.responses_api_models.vllm_model.num_workers",
    ]
