"""What vLLM says in one process, without Ray, without HTTP and without anything of ours in it: the reference.

`python one_process.py MODEL_FOLDER` reads a JSON list of questions (messages, tools, sampling) and prints their
answers: the ids of the prompt and of what was generated, and the log probabilities of the latter.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    engine = LLM(
        sys.argv[1], dtype="float32", max_model_len=8192, max_num_seqs=16, enforce_eager=True,
        kv_cache_memory_bytes=64 * 2**20,
    )  # fmt: skip
    questions = json.load(sys.stdin)
    answers = [
        engine.chat(
            question["messages"],
            SamplingParams(max_tokens=2048, logprobs=0, **question["sampling"]),
            tools=question["tools"],
            use_tqdm=False,
        )[0]
        for question in questions
    ]
    print(json.dumps([_as_json(answer) for answer in answers]))


def _as_json(answer) -> dict[str, list]:
    (generated,) = answer.outputs
    ids = list(generated.token_ids)
    return {
        "prompt_token_ids": list(answer.prompt_token_ids),
        "generation_token_ids": ids,
        "generation_log_probs": [at[token].logprob for token, at in zip(ids, generated.logprobs, strict=True)],
    }


if __name__ == "__main__":
    main()
