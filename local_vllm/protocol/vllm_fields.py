"""vLLM's own chat fields that a Responses request may carry too, as data: `request.py` accepts exactly these,
`precedence.py` sends them on, and the README lists them. vLLM itself checks their values.
"""

from __future__ import annotations

# name -> what it does, in the words of the README's table
PASSED_THROUGH: dict[str, str] = {
    "top_k": "sample from the k most likely tokens",
    "min_p": "drop tokens less likely than this share of the likeliest one",
    "seed": "seed of the sampler",
    "frequency_penalty": "as in Chat Completions",
    "presence_penalty": "as in Chat Completions",
    "repetition_penalty": "above 1 discourages repetition",
    "length_penalty": "for beam search",
    "use_beam_search": "beam search",
    "logit_bias": "token id -> bias",
    "stop": "strings that end the answer",
    "stop_token_ids": "token ids that end the answer",
    "include_stop_str_in_output": "keep the stop string in the text",
    "ignore_eos": "go on after the end-of-sequence token",
    "min_tokens": "no end of sequence before so many tokens",
    "max_tokens": "the same as max_output_tokens",
    "max_completion_tokens": "the same as max_output_tokens",
    "bad_words": "words that are never generated",
    "allowed_token_ids": "sample from these token ids only",
    "skip_special_tokens": "leave special tokens out of the text",
    "spaces_between_special_tokens": "blanks between special tokens",
    "truncate_prompt_tokens": "keep only so many tokens of the prompt",
    "truncation_side": "which end truncate_prompt_tokens keeps",
    "thinking_token_budget": "most tokens of reasoning",
    "include_reasoning": "false leaves reasoning out of the answer",
    "reasoning_effort": "the same as reasoning.effort",
    "response_format": "the same as text.format, in Chat Completions' shape",
    "structured_outputs": "json, regex, choice, grammar or structural_tag that the answer obeys",
    "guided_json": "becomes structured_outputs.json",
    "guided_regex": "becomes structured_outputs.regex",
    "guided_choice": "becomes structured_outputs.choice",
    "guided_grammar": "becomes structured_outputs.grammar",
    "guided_whitespace_pattern": "becomes structured_outputs.whitespace_pattern",
    "guided_decoding_backend": "ignored: the engine chooses",
    "chat_template": "a Jinja template in place of the model's",
    "chat_template_kwargs": "variables of the chat template, merged key by key with the server's",
    "add_generation_prompt": "open the assistant's turn in the prompt",
    "continue_final_message": "go on with the last message instead of a new one",
    "add_special_tokens": "add special tokens on top of the chat template's",
    "documents": "documents for templates that know retrieval",
    "media_io_kwargs": "options for loading media",
    "mm_processor_kwargs": "options for the model's processor",
    "priority": "scheduling priority, lower first",
    "request_id": "vLLM's id of the request",
    "session_id": "vLLM's id of the session",
    "cache_salt": "separates prefix caches",
    "kv_transfer_params": "for disaggregated serving",
    "ec_transfer_params": "for disaggregated encoders",
    "vllm_xargs": "arguments of custom extensions",
    "repetition_detection": "end the answer when it repeats itself",
    "return_token_ids": "true adds token ids and log probabilities to the last output item",
    "return_tokens_as_token_ids": "log probabilities name their token as token_id:N",
}

# Fields which say where an answer goes and what it is made of. Settings and metadata cannot set them.
RESERVED = frozenset({"model", "messages", "input", "stream", "stream_options", "n", "tools", "tool_choice"})

# What POST /tokenize takes of a chat request (the rest of it does not change the prompt).
TOKENIZE = (
    "model",
    "messages",
    "prompt",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "media_io_kwargs",
    "mm_processor_kwargs",
)
