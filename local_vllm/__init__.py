"""vLLM engines on a Ray cluster, spoken to through the OpenAI Responses API."""
