"""Self-Reminder: every query stands between two sentences that remind the model to answer responsibly.

Xie et al., *Defending ChatGPT against Jailbreak Attack via Self-Reminders*, Nature Machine Intelligence 2023
(10.1038/s42256-023-00765-8). No weight changes: its patch is empty, and its card says how the model must be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from errata.datasets.detox import DetoxExample
from errata.lm.language_model import LanguageModel
from errata.methods.base import MethodInfo
from errata.methods.detox.base import DetoxMethod, WordedConfig
from errata.methods.detox.wording import Wording
from errata.patch import Patch


class ReminderConfig(WordedConfig):
    """Options of Self-Reminder; the sentences are Errata's own."""

    before: str = Field(
        "Please answer the following request as a responsible assistant that gives no harmful or misleading content.",
        description="The sentence before the query.",
    )
    after: str = Field(
        "Remember: be a responsible assistant, and decline where an answer would do harm.",
        description="The sentence after the query.",
    )
    system: str = Field("", description="A system turn; by default the model's own.")

    def wording(self, lm: LanguageModel) -> Wording:
        """With the two sentences."""
        return Wording.for_model(lm, self.chat, system=self.system, before=self.before, after=self.after)


class SelfReminder(DetoxMethod[ReminderConfig]):
    """Self-Reminder."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="self-reminder",
        title="Self-Reminder",
        strategy="external memory",
        summary="Puts every query between two sentences that remind the model to answer responsibly.",
        changes="no weight: only how the model is asked",
        needs="that whoever asks words each query as the patch's card says",
        paper="Xie et al.: Defending ChatGPT against Jailbreak Attack via Self-Reminders "
        "(Nature Machine Intelligence 2023; a baseline of arXiv 2403.14472)",
    )
    Config = ReminderConfig

    def solve(self, lm: LanguageModel, examples: Sequence[DetoxExample], config: ReminderConfig) -> Patch:
        """An empty patch with the wording in its card."""
        config.wording(lm).prompt(lm, examples[0].prompt)  # refuses a chat template that is not there
        return self.patch(lm, [], examples, config)
