"""Two real engines behind the whole path (HAProxy, Serve, gateway or server), with every environment that is shipped,
shared by all tests of this folder. Nearly all of them speak to the first one; the model of the other comes from a Hub,
which is a stand-in.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_answers import SERVER
from ng_run_process import KEY, WITH_HELD_BACK, NgRun, running
from stand_in_hub import Repository, StandInHub, files_of

from local_vllm.cpu.default_model import build_default_model

# What Codex sends before the first word of its user is longer than the context of the other tests' engines.
POLICY = "++policy_model.responses_api_models.local_vllm_model"
CONTEXT = f"{POLICY}.vllm_serve_kwargs.max_model_len=16384"
PACE = f"{POLICY}.vllm_serve_kwargs.logits_processors=[held_back:Pace]"
DIRECT = f"{POLICY}.direct_responses=true"
ENVIRONMENTS = ("simple_weather", "example_multi_step", "multineedle", "equivalence_llm_judge", "simple_task")
# The default model says what it is told to: the row, in its expected answer, tells the judge its verdict.
JUDGE = "++equivalence_llm_judge.equivalence_llm_judge.judge_"
VERDICT_OF_THE_ROW = (
    f"{JUDGE}prompt_template='ECHO:{{expected_answer}}, of {{generated_answer}}, asked {{question}}'",
    f"{JUDGE}system_message=''",
)


FROM_HUB = "tiny-org/tiny-model"
JUDGE_MODEL = "++judge_model.responses_api_models.local_vllm_model"


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    files = files_of(build_default_model(tmp_path_factory.mktemp("hub") / "tiny"))
    server = StandInHub({FROM_HUB: Repository(files)})
    yield server
    server.stop()


@pytest.fixture(scope="session")
def run(hub: StandInHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NgRun]:
    folder = tmp_path_factory.mktemp("engine")
    for name in ("policy_model", "judge_model"):
        (folder / f"{name}.yaml").write_text(SERVER.format(name=name, key=KEY, size=1))
    environments = (
        f"resources_servers/{name}/configs/{'simple' if name == 'simple_task' else name}.yaml" for name in ENVIRONMENTS
    )
    configs = ",".join(("policy_model.yaml", "judge_model.yaml", *environments))
    from_hub = (f"{JUDGE_MODEL}.model={FROM_HUB}", f"{JUDGE_MODEL}.hf_home={folder / 'hf'}")
    words = (f"+config_paths=[{configs}]", CONTEXT, PACE, DIRECT, *from_hub, *VERDICT_OF_THE_ROW)
    environment = {**WITH_HELD_BACK, "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1,localhost"}
    with running(folder, *words, environment=environment) as started:
        started.let_others_go_before_engines()
        yield started
