"""Another language model as a judge, asked through an endpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import sleep as pause

from errata import progress
from errata.errors import ConfigError, JudgeError
from errata.evaluation.judging.answer_cache import AnswerCache
from errata.evaluation.judging.base import UNPARSED, Judge, Verdict
from errata.evaluation.judging.endpoint import Endpoint
from errata.evaluation.judging.rubrics import RUBRICS, question

ADDRESS = "ERRATA_JUDGE_URL"
MAX_TOKENS = 200
ASKED = 3  # times, where the answer is not in the form asked for


class LlmJudge(Judge):
    """A chat model that grades by a rubric at temperature 0 (Qi et al. 2023, arXiv 2310.03693, for harm from 1 to 5).

    Every verdict is kept on disk under the model, the rubric and the texts, so that a run that fails goes on where it
    stopped. What cannot be read after three attempts is "unparsed": it has no score, and no default is put in.

    Args:
        model: its name at the endpoint.
        url: the endpoint's address, ``http://HOST:PORT/v1``; by default the variable ERRATA_JUDGE_URL.
        rubric: "harm" (grades 1 to 5; the score is (grade - 1) / 4) or "refusal" (XSTest's three classes).
        key_variable: the environment variable that holds the key, if one is needed.
        timeout: seconds a request. retries: after time-outs and answers that say "later".
        price_in: money a million tokens read, for :meth:`cost`. price_out: a million written.
        cache: where verdicts are kept; by default the user's cache folder.
        sleep: what pauses between retries.

    Raises:
        ConfigError: no address, or no such rubric.
    """

    def __init__(
        self,
        model: str = "",
        url: str | None = None,
        rubric: str = "harm",
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 4,
        price_in: float | None = None,
        price_out: float | None = None,
        cache: str | Path | None = None,
        sleep: Callable[[float], None] = pause,
    ) -> None:
        address = url or os.environ.get(ADDRESS)
        if not model or not isinstance(address, str) or not address:
            raise ConfigError(f"An LLM judge needs a model and an address: give llm:MODEL, and url= or {ADDRESS}.")
        if rubric not in RUBRICS:
            raise ConfigError(f"There is no rubric {rubric!r}: choose one of {', '.join(RUBRICS)}.")
        if not all(price is None or isinstance(price, int | float) for price in (price_in, price_out)):
            raise ConfigError("The judge's price_in and price_out are money a million tokens: give numbers.")
        self._rubric = RUBRICS[rubric]
        self._endpoint = Endpoint(
            model, address, key_variable=key_variable, timeout=timeout, retries=retries, sleep=sleep
        )
        self._cache, self._prices = AnswerCache(cache), (price_in, price_out)
        self._requests = self._kept = self._read = self._written = 0
        self.about = "refusal" if rubric == "refusal" else "harm"
        self.labels = tuple(label for label, _ in self._rubric.decisions.values())
        self.name = f"llm:{model}:{rubric}"

    def _judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        with progress.task("Asking the judge", len(responses)) as bar:
            for prompt, response in zip(prompts, responses, strict=True):
                try:
                    verdicts.append(self._one(prompt, response))
                except JudgeError as error:
                    done = f" ({len(verdicts)} of {len(responses)} verdicts are kept.)" if verdicts else ""
                    raise JudgeError(f"{error}{done}") from error
                bar.advance(description=f"Asking the judge, {self._read + self._written} tokens")
        return verdicts

    def _one(self, prompt: str, response: str) -> Verdict:
        shown = question(prompt, response)
        key = (self._endpoint.model, self._endpoint.url, self._rubric.text, shown)
        found = self._cache.get(*key)
        if found is not None and (kept := self._rubric.read(str(found.get("answer")))) is not None:
            self._kept += 1
            return Verdict(*kept, note=str(found["answer"]))
        messages = [{"role": "system", "content": self._rubric.text}, {"role": "user", "content": shown}]
        answer = ""
        for _ in range(ASKED):
            reply = self._endpoint.complete(messages, max_tokens=MAX_TOKENS)
            self._requests += 1
            self._read, self._written = self._read + reply.prompt_tokens, self._written + reply.completion_tokens
            answer = reply.text
            decided = self._rubric.read(answer)
            if decided is not None:
                self._cache.put({"answer": answer, "model": self._endpoint.model}, *key)
                return Verdict(*decided, note=answer)
        return Verdict(UNPARSED, None, note=answer)

    def cost(self) -> dict[str, float]:
        """Requests made, verdicts found on disk, tokens read and written, and the money where prices are given."""
        spent: dict[str, float] = {
            "requests": self._requests, "from_cache": self._kept,
            "prompt_tokens": self._read, "completion_tokens": self._written,
        }  # fmt: skip
        price_in, price_out = self._prices
        if price_in is not None and price_out is not None:
            spent["money"] = (self._read * price_in + self._written * price_out) / 1e6
        return spent
