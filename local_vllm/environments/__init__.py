"""Environments and agents: the bases to derive your own from, and in the folders below those shipped.

An environment offers tools and says what a rollout is worth; an agent drives a model through it.
"""

from __future__ import annotations

from local_vllm.config.environment_settings import AgentSettings, ResourcesServerSettings
from local_vllm.environments.agent import Agent
from local_vllm.environments.conversation import Called, Conversation, Turn
from local_vllm.environments.failures import EnvironmentFailure, ToolError
from local_vllm.environments.resources_server import ResourcesServer
from local_vllm.environments.rollout import Call, Rollout, Verdict
from local_vllm.environments.tools import tool

__all__ = [
    "Agent",
    "AgentSettings",
    "Call",
    "Called",
    "Conversation",
    "EnvironmentFailure",
    "ResourcesServer",
    "ResourcesServerSettings",
    "Rollout",
    "ToolError",
    "Turn",
    "Verdict",
    "tool",
]
