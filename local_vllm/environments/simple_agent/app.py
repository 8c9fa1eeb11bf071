"""The simplest agent: ask the model, run the tools that it calls, ask again, until it calls none."""

from __future__ import annotations

from local_vllm.environments import Agent, Conversation

# Long enough for tasks of dozens of calls, and an end for a model that never stops calling.
MAX_STEPS = 50


class SimpleAgent(Agent):
    """Stops after `max_steps` answers of the model; what has been done until then is verified."""

    async def drive(self, conversation: Conversation) -> None:
        steps = self.settings.max_steps or MAX_STEPS
        for _ in range(steps):
            turn = await conversation.ask()
            if turn.status != "completed" or not turn.calls:
                return
            await conversation.run(turn.calls)
        conversation.stop("max_output_tokens", stopped_by="max_steps", max_steps=str(steps))
