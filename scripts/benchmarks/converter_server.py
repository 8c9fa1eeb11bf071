"""A model server of ours alone: converter and engine client on a bare uvicorn, without Ray and HAProxy.

    python -m benchmarks.converter_server PORT ENGINE_URL [training]
"""

from __future__ import annotations

import secrets
import sys

import uvicorn

from benchmarks.targets import STORE_MIB
from local_vllm.config.schema import VLLMModelSettings
from local_vllm.serving.replica import Replica, settle_memory
from local_vllm.serving.vllm_model import VLLMModel


def main() -> None:
    port, engine_url, training = int(sys.argv[1]), sys.argv[2], "training" in sys.argv[3:]
    of_training = {"return_token_id_information": True, "response_store": "none"} if training else {}
    kept = of_training or {"response_store_max_mib": STORE_MIB}
    settings = VLLMModelSettings(base_url=f"{engine_url}/v1", model="stand-in", **kept)
    application = VLLMModel("policy_model", settings, Replica(secrets.token_bytes(32)))
    settle_memory()
    uvicorn.run(
        application, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )


if __name__ == "__main__":
    main()
