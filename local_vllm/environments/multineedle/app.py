"""Several needles in a long text: each is a value under a label, to be handed in with a tool."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from local_vllm.environments import ResourcesServer, ResourcesServerSettings, Rollout, Verdict, tool

# label -> value, as the model handed them in
Found = dict[str, str]


class NeedleSettings(ResourcesServerSettings):
    """What the config can say."""

    scoring: Literal["share", "all"] = Field(
        "share", description="The reward: the share of the needles that were found, or 1 for all of them."
    )


class NeedleRow(BaseModel):
    """What a row has to hold; the text with the needles in it stands in the row's request."""

    needles: dict[str, str] = Field(min_length=1)


class MultiNeedle(ResourcesServer):
    Settings = NeedleSettings
    Row = NeedleRow

    @tool
    async def submit_needle(self, label: str, value: str, session: Found) -> str:
        """Hand in one needle. A second value for the same label replaces the first.

        Args:
            label: What the value belongs to, exactly as it is called in the text.
            value: The value that the text gives for it.
        """
        session[_plain(label)] = _plain(value)
        return f"{len(session)} handed in so far"

    @tool
    async def list_submitted(self, session: Found) -> Found:
        """The needles that were handed in so far, label by label."""
        return session

    async def verify(self, rollout: Rollout[NeedleRow, Found]) -> Verdict:
        """The share of the needles that were found; what is no needle takes as much away again."""
        wanted = {_plain(label): _plain(value) for label, value in rollout.row.needles.items()}
        submitted = rollout.session
        right = [label for label, value in wanted.items() if submitted.get(label) == value]
        strange = submitted.keys() - wanted.keys()
        share = max(0, len(right) - len(strange)) / len(wanted)
        reward = share if self.settings.scoring == "share" else float(share == 1)
        return Verdict(
            reward=reward,
            needles_found=len(right),
            needles_strange=len(strange),
            needles_total=len(wanted),
        )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .\"'").removeprefix("the ")
