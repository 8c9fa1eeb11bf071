"""What good command lines and config files come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_vllm.config import lookup

VLLM = """
    {name}:
      responses_api_models:
        vllm_model:
          base_url: http://a:1/v1
          model: {model}
"""
LOCAL = """
    {name}:
      responses_api_models:
        local_vllm_model:
          model: {model}
          vllm_serve_kwargs: {{data_parallel_size: 1, tensor_parallel_size: 8, pipeline_parallel_size: 1}}
          vllm_serve_env_vars: {{VLLM_RAY_DP_PACK_STRATEGY: strict}}
"""
PREFIX = "++policy_model.responses_api_models.local_vllm_model"


def only(config):
    (server,) = config.servers
    return server


@pytest.mark.parametrize("argv", [(), ("+http_port=12000",), ("http_port=12000", "+limit=3")])
def test_the_quickstart_config_is_served_whatever_else_is_given(load, argv):
    server = only(load(*argv))

    assert (server.name, server.implementation) == ("policy_model", "local_vllm_model")
    assert server.settings.vllm_serve_kwargs.tensor_parallel_size == 1


def test_global_keys_have_the_stated_defaults(load):
    settings = load().settings

    assert (settings.http_host, settings.http_port, settings.ray_address, settings.dry_run) == (
        "127.0.0.1",
        11000,
        None,
        False,
    )


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_every_kind_of_assignment_overrides_a_key_that_is_there(load, prefix):
    word = prefix + PREFIX.lstrip("+") + ".vllm_serve_kwargs.tensor_parallel_size=2"

    assert only(load(word)).settings.vllm_serve_kwargs.tensor_parallel_size == 2


def test_the_kind_may_be_left_out_of_any_path(load):
    settings = only(
        load(
            "+policy_model.local_vllm_model.vllm_serve_kwargs.max-model-len=4096",
            "+policy_model.local_vllm_model.debug=true",
        )
    ).settings

    assert settings.debug
    assert settings.vllm_serve_kwargs.flags()["max_model_len"] == 4096


def test_model_name_is_another_name_of_model(load, write):
    write("a.yaml", VLLM.format(name="m", model="one").replace("model: one", "model_name: one"))

    assert only(load("+config_paths=[a.yaml]")).settings.model == "one"
    assert only(load("+config_paths=[a.yaml]", "+m.vllm_model.model_name=two")).settings.model == "two"


def test_a_tilde_removes_a_key(load):
    server = only(load(f"~{PREFIX.lstrip('+')}.vllm_serve_kwargs.max_model_len"))

    assert "max_model_len" not in server.settings.vllm_serve_kwargs.flags()


def test_a_mapping_on_the_command_line_is_merged_into_the_one_in_the_file(load):
    flags = only(load(PREFIX + ".vllm_serve_kwargs={compilation_config:{mode:1,backend:eager}}")).settings
    flags = flags.vllm_serve_kwargs.flags()

    assert flags["compilation_config"] == {"mode": 1, "backend": "eager"}
    assert flags["tensor_parallel_size"] == 1


@pytest.mark.parametrize(
    "word",
    [
        "+config_paths=[a.yaml,b.yaml]",
        "+config_paths=[a.yaml,     b.yaml]",
        "+config_paths=[\n    a.yaml,\n    b.yaml\n]",
        "+config_paths=[a.yaml,\n\tb.yaml,\n]",
        "++config_paths=['a.yaml', \"b.yaml\"]",
        "config_paths=a.yaml,b.yaml",
        "+config_paths= [ a.yaml , b.yaml ]",
    ],
)
def test_blanks_and_newlines_in_config_paths_do_not_matter(load, write, word):
    write("a.yaml", VLLM.format(name="first", model="a"))
    write("b.yaml", VLLM.format(name="second", model="b"))

    assert [server.name for server in load(word).servers] == ["first", "second"]


def test_files_are_merged_from_left_to_right_then_env_then_the_command_line(load, write):
    write("a.yaml", VLLM.format(name="m", model="a"))
    write("b.yaml", "m: {responses_api_models: {vllm_model: {model: b, num_workers: 2, api_key: b}}}")
    write("env.yaml", "m: {responses_api_models: {vllm_model: {num_workers: 3, api_key: c}}}")

    settings = only(load("+config_paths=[a.yaml,b.yaml]", "+m.vllm_model.api_key=d")).settings

    assert settings.base_url == ("http://a:1/v1",)
    assert (settings.model, settings.num_workers, settings.api_key.get_secret_value()) == ("b", 3, "d")


def test_a_server_in_two_files_is_merged_and_said(load, write):
    write("a.yaml", VLLM.format(name="m", model="a"))
    write("b.yaml", "m: {responses_api_models: {vllm_model: {return_token_id_information: true}}}")

    config = load("+config_paths=[a.yaml,b.yaml]")

    assert only(config).settings.return_token_id_information
    assert config.notices == ("m stands in a.yaml and b.yaml: they are merged, the last one wins",)


def test_a_file_names_other_files_beside_it_which_come_before_it(load, write, tmp_path):
    write("top/a.yaml", "config_paths: [b.yaml]\n" + "m: {responses_api_models: {vllm_model: {model: a}}}")
    write("top/b.yaml", VLLM.format(name="m", model="b"))

    config = load("+config_paths=[top/a.yaml]")

    assert only(config).settings.model == "a"
    assert [file.name for file in config.files] == ["b.yaml", "a.yaml", "env.yaml"]


def test_env_yaml_gives_variables_and_what_is_unused_there_is_no_error(load, write):
    write(
        "env.yaml",
        "policy_base_url: http://a:1/v1\npolicy_api_key: k\npolicy_model_name: m\nother: [1]\nleft: ???",
    )

    config = load("+config_paths=[responses_api_models/vllm_model/configs/vllm_model.yaml]")

    assert only(config).settings.base_url == ("http://a:1/v1",)
    assert config.notices == ()


def test_a_variable_can_be_given_on_the_command_line(load):
    config = load("+config_paths=[local_vllm_model.yaml]", "+policy_model_name=Qwen/Qwen3-4B")

    assert only(config).settings.model == "Qwen/Qwen3-4B"


def test_the_environment_can_be_used_in_a_value(load, write, monkeypatch):
    monkeypatch.setenv("SOME_MODEL", "x")
    write("a.yaml", VLLM.format(name="m", model="${oc.env:SOME_MODEL}"))

    assert only(load("+config_paths=[a.yaml]")).settings.model == "x"


def test_a_variable_that_nearly_spells_a_global_key_is_told(load, write):
    write("env.yaml", "htp_port: 12000")

    assert load().notices == (
        "env.yaml: `htp_port` is only a variable; did you mean the global key `http_port`?",
    )


@pytest.mark.parametrize("name", ["HF_TOKEN", "hf_token"])
def test_the_hub_token_comes_from_env_yaml_and_never_shows(load, write, name):
    write("env.yaml", f"{name}: hf_secret")

    config = load()

    assert config.settings.hf_token.get_secret_value() == "hf_secret"
    assert "hf_secret" not in repr(config)


def test_api_keys_and_the_environment_of_vllm_never_show(load):
    config = load(
        "+policy_model.local_vllm_model.api_key=sk-1",
        "+policy_model.local_vllm_model.vllm_serve_env_vars.K=sk-2",
    )

    assert only(config).settings.api_key.get_secret_value() == "sk-1"
    assert "sk-" not in repr(config)


@pytest.mark.parametrize(
    ("written", "urls"),
    [
        ("http://a:1/v1", ("http://a:1/v1",)),
        ("http://a:1/v1,http://b:2/v1", ("http://a:1/v1", "http://b:2/v1")),
        ('"http://a:1/v1, http://b:2/v1/"', ("http://a:1/v1", "http://b:2/v1")),
        ("[http://a:1/v1,http://b:2/v1]", ("http://a:1/v1", "http://b:2/v1")),
    ],
)
def test_base_url_is_one_or_many_however_it_is_written(load, write, written, urls):
    write("a.yaml", VLLM.format(name="m", model="m"))
    write(
        "b.yaml",
        f"m: {{responses_api_models: {{vllm_model: {{base_url: {written}}}}}}}" if "[" in written else "",
    )

    assert only(load("+config_paths=[a.yaml]", f"+m.vllm_model.base_url={written}")).settings.base_url == urls
    assert (
        only(load("+config_paths=[a.yaml,b.yaml]", f"+m.vllm_model.base_url={written}")).settings.base_url
        == urls
    )


@pytest.mark.parametrize("url", ["http://me:pass@a:1/v1", "https://me@a/v1", " http://:pass@a/v1"])
def test_a_url_with_credentials_is_refused_and_not_shown(problems, write, url):
    write("a.yaml", VLLM.format(name="m", model="m"))
    (line,) = problems("+config_paths=[a.yaml]", f"+m.vllm_model.base_url='http://b/v1,{url}'")
    assert "base_url: must not hold a user name or a password" in line and "`api_key`" in line
    assert "pass@" not in line


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen3-4B.yaml",
        "responses_api_models/local_vllm_model/configs/Qwen/Qwen3-4B.yaml",
    ],
)
def test_a_shipped_config_is_found_by_its_own_and_by_its_published_path(load, name):
    config = load(f"+config_paths=[{name}]")

    assert config.files[0] == lookup.shipped_configs() / "Qwen/Qwen3-4B.yaml"


def test_a_file_of_the_working_directory_goes_before_the_shipped_one(load, write):
    write("Qwen/Qwen3-4B.yaml", VLLM.format(name="mine", model="m"))

    assert only(load("+config_paths=[Qwen/Qwen3-4B.yaml]")).name == "mine"


def test_policy_model_means_the_only_model_server_in_overrides_and_references(load):
    config = load(
        "+config_paths=[Qwen/Qwen3-4B.yaml,local_vllm_model_proxy.yaml]",
        "++policy_model.responses_api_models.local_vllm_model.vllm_serve_kwargs.tensor_parallel_size=2",
    )

    model, proxy = config.servers
    assert (model.name, model.settings.vllm_serve_kwargs.tensor_parallel_size) == ("Qwen3-4B", 2)
    assert proxy.settings.model_server.name == "Qwen3-4B"


def test_policy_model_can_be_used_in_an_interpolation(load, write):
    model = "${policy_model.responses_api_models.local_vllm_model.model}"
    write("judge.yaml", VLLM.format(name="my_judge", model=model))

    config = load("+config_paths=[Qwen/Qwen3-4B.yaml,judge.yaml]")

    assert config.servers[1].settings.model == "Qwen/Qwen3-4B"


def test_a_judge_is_not_the_policy_model(load, write):
    write("env.yaml", "judge_base_url: http://j:1/v1\njudge_api_key: k\njudge_model_name: j")
    config = load(
        "+config_paths=[Qwen/Qwen3-4B.yaml,responses_api_models/vllm_model/configs/vllm_judge_model.yaml]",
        "+policy_model.local_vllm_model.debug=true",
    )

    assert [server.name for server in config.servers] == ["Qwen3-4B", "judge_model"]
    assert config.servers[0].settings.debug


@pytest.mark.parametrize(
    ("model", "server", "served"),
    [
        (
            "Qwen/Qwen3-30B-A3B-Instruct-2507",
            "Qwen3-30B-A3B-Instruct-2507",
            "Qwen/Qwen3-30B-A3B-Instruct-2507",
        ),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3_1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("openai/gpt-oss-20b", "gpt-oss-20b-reasoning-medium", "openai/gpt-oss-20b"),
        ("openai/gpt-oss-20b-reasoning-high", "gpt-oss-20b-reasoning-high", "openai/gpt-oss-20b"),
        ("my-org/my-model", "policy_model", "my-org/my-model"),
    ],
)
def test_a_model_chooses_its_shipped_config_or_the_generic_one(load, model, server, served):
    chosen = only(load(f"+model={model}"))

    assert (chosen.name, chosen.settings.model) == (server, served)


def test_a_new_server_can_be_written_on_the_command_line(load):
    config = load(
        "+other.responses_api_models.vllm_model.base_url=http://a:1/v1", "+other.vllm_model.model_name=m"
    )

    assert [server.name for server in config.servers] == ["policy_model", "other"]


def test_the_keys_of_the_collector_are_known_to_every_command(load):
    settings = load(
        "+agent_name=a",
        "+input_jsonl_fpath=resources_servers/x/data/example.jsonl",
        "+limit=10",
        "+concurrency=100",
        "+responses_create_params.temperature=0.7",
        "+resume_from_cache=true",
    ).settings

    assert (settings.num_samples_in_parallel, settings.limit) == (100, 10)
    assert settings.responses_create_params == {"temperature": 0.7}


def test_hf_home_is_resolved_when_it_is_used(load, monkeypatch, tmp_path):
    settings = only(load()).settings
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    assert settings.resolved_hf_home() == tmp_path
    assert only(load("+policy_model.local_vllm_model.hf_home=/x")).settings.resolved_hf_home() == Path("/x")


def test_the_pack_strategy_and_the_served_names_can_be_asked_for(load, write):
    write("a.yaml", LOCAL.format(name="m", model="org/m"))

    assert only(load("+config_paths=[a.yaml]")).settings.pack_strategy == "strict"
    assert only(load("+config_paths=[a.yaml]")).settings.served_model_names == ("org/m",)
    renamed = load("+config_paths=[a.yaml]", "+m.local_vllm_model.vllm_serve_kwargs.served_model_name=[x,y]")
    assert only(renamed).settings.served_model_names == ("x", "y")


def test_environment_values_reach_vllm_as_text(load):
    prefix = "+policy_model.local_vllm_model.vllm_serve_env_vars"
    variables = only(
        load(f"{prefix}.A=true", f"{prefix}.B=3", f"{prefix}.C=null")
    ).settings.vllm_serve_env_vars

    assert (variables["A"], variables["B"], "C" in variables) == ("1", "3", False)
