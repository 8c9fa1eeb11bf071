"""Two real engines behind the whole path (HAProxy, Serve, gateway or server), with every environment that is shipped,
shared by all tests of this folder. Nearly all of them speak to the first one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_answers import SERVER
from ng_run_process import KEY, WITH_HELD_BACK, NgRun, running

# What Codex sends before the first word of its user is longer than the context of the other tests' engines.
POLICY = "++policy_model.responses_api_models.local_vllm_model.vllm_serve_kwargs"
CONTEXT = f"{POLICY}.max_model_len=16384"
PACE = f"{POLICY}.logits_processors=[held_back:Pace]"
ENVIRONMENTS = ("simple_weather", "example_multi_step", "multineedle", "equivalence_llm_judge", "simple_task")
# The default model says what it is told to: the row, in its expected answer, tells the judge its verdict.
JUDGE = "++equivalence_llm_judge.equivalence_llm_judge.judge_"
VERDICT_OF_THE_ROW = (
    f"{JUDGE}prompt_template='ECHO:{{expected_answer}}, of {{generated_answer}}, asked {{question}}'",
    f"{JUDGE}system_message=''",
)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NgRun]:
    folder = tmp_path_factory.mktemp("engine")
    for name in ("policy_model", "judge_model"):
        (folder / f"{name}.yaml").write_text(SERVER.format(name=name, key=KEY, size=1))
    environments = (
        f"resources_servers/{name}/configs/{'simple' if name == 'simple_task' else name}.yaml" for name in ENVIRONMENTS
    )
    configs = ",".join(("policy_model.yaml", "judge_model.yaml", *environments))
    words = [f"+config_paths=[{configs}]", CONTEXT, PACE, *VERDICT_OF_THE_ROW]
    with running(folder, *words, environment=WITH_HELD_BACK) as started:
        started.keep_a_cpu_free_of_engines()
        yield started
