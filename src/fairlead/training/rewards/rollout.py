"""Rollouts: what the student is asked in a step, through TRL's `rollout_func`.

Groups come in two kinds. *Plain*: the question alone. *Intervention*: the question, an answer that the student has just given up to one of
its claims, and the injected text; the group goes on from there. One span is drawn per group, a flagged one where there is one. A
group stays within one process. Sampling itself is TRL's (`_generate_single_turn`, transformers or vLLM alike).

In plain groups one rollout may be replaced by a hint, a text that the student would never write by itself ("I do not know."): the
reward is the same as for any text, and a hint is never learned away from, only towards (`Setting.hinted`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fairlead.core.claims import ClaimSpan
from fairlead.data.template import encode_prompt
from fairlead.training.rewards.claims import Question, Splitter
from fairlead.training.rewards.config import RewardConfig
from fairlead.training.rewards.reading import Text, read_claims

if TYPE_CHECKING:
    from fairlead.core.nouns import SpanReadout
    from fairlead.models import Model


class Setting(NamedTuple):
    """What a rollout goes on from.

    Attributes:
        question: The question.
        prompt_ids: Its tokens, without what was said before.
        before: The answer so far with the injected text; "" for a plain group.
        flagged: The claim in question with its score; None for a plain group.
        hinted: Whether the rollout is a hint.
    """

    question: Question
    prompt_ids: tuple[int, ...]
    before: str = ""
    flagged: ClaimSpan | None = None
    hinted: bool = False


class Rollouts:
    """TRL's `rollout_func` for a set of questions.

    Args:
        model: The start model, for its tokenizer and its prompts.
        questions: What to ask.
        config: Settings.
        reader: The model whose activations the readout reads (the frozen copy by default).
        readout: Reads claims.
        splitter: Finds them.
    """

    def __init__(
        self,
        model: Model,
        questions: Sequence[Question],
        *,
        config: RewardConfig,
        readout: SpanReadout,
        splitter: Splitter,
    ) -> None:
        self.model, self.questions, self.config = model, tuple(questions), config
        self.readout, self.splitter = readout, splitter
        self.prompts = [tuple(encode_prompt(q.messages, model.tokenizer)) for q in self.questions]
        self.settings: list[Setting] = []

    def prompt(self, place: int) -> str:
        """The name under which TRL's data set holds a question."""
        return f"{place}"

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """Prompt and completion tokens for a process's share of a step, as TRL asks for them."""
        step, size = trainer.state.global_step, self.config.group_size
        groups = [int(prompt) for prompt in prompts[::size]]
        settings = self._settings(groups, step, trainer)
        tokenizer = self.model.tokenizer
        ids = [
            [*s.prompt_ids, *tokenizer(s.before, add_special_tokens=False)["input_ids"]] if s.before else [*s.prompt_ids]
            for s in settings
        ]
        repeated = [list(row) for row in ids for _ in range(size)]
        completions, logprobs = trainer._generate_single_turn(repeated, None, {}, size)
        self.settings = [setting for setting in settings for _ in range(size)]
        for group, setting in enumerate(settings):
            hint = self._hint(setting, groups[group], step)
            if hint is not None:
                place = group * size + size - 1
                completions[place] = [*tokenizer(hint, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
                if logprobs is not None:
                    logprobs[place] = [0.0] * len(completions[place])
                self.settings[place] = setting._replace(hinted=True)
        return {"prompt_ids": repeated, "completion_ids": completions, "logprobs": logprobs}

    def _settings(self, groups: Sequence[int], step: int, trainer: Any) -> list[Setting]:
        """One per group: plain, or from a claim of an answer that the student gives now."""
        plain = [Setting(self.questions[place], self.prompts[place]) for place in groups]
        share = self.config.intervention_share
        chosen = [k for k, place in enumerate(groups) if self.draw("kind", step, place) < share]
        if not chosen:
            return plain
        ids, _ = trainer._generate_single_turn([list(plain[k].prompt_ids) for k in chosen], None, {}, 1)
        answers = self.model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        texts = [
            Text(plain[k].prompt_ids, answer, tuple(self.splitter(plain[k].question, answer)))
            for k, answer in zip(chosen, answers, strict=True)
        ]
        for k, text, claims in zip(chosen, texts, read_claims(self.model, self.readout, texts), strict=True):
            draw = [self.draw(name, step, groups[k]) for name in ("span", "unflagged")]
            span = choose_claim(
                claims, threshold=self.config.threshold, unflagged=draw[1] < self.config.unflagged_share, draw=draw[0]
            )
            if span is not None:
                before = f"{text.response[: span.end]} {self.config.inject}"
                plain[k] = plain[k]._replace(before=before, flagged=span)
        return plain

    def _hint(self, setting: Setting, place: int, step: int) -> str | None:
        config = self.config
        if setting.flagged is not None or not config.hints or step >= config.hint_until:
            return None
        if self.draw("hint", step, place) >= config.hint_share:
            return None
        return config.hints[int(self.draw("which", step, place) * len(config.hints))]

    def draw(self, what: str, step: int, place: int) -> float:
        """A number in [0, 1) that depends on seed, step and question alone, so that a resumed run draws the same."""
        digest = hashlib.sha256(f"{self.config.seed}:{what}:{step}:{place}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48


def choose_claim(
    claims: Sequence[ClaimSpan], *, threshold: float, unflagged: bool, draw: float
) -> ClaimSpan | None:
    """The claim to intervene on: a flagged one, or (where `unflagged`) any; None where there is none."""
    flagged = [claim for claim in claims if claim.score is not None and claim.score > threshold]
    pool = flagged or (list(claims) if unflagged else [])
    return pool[int(draw * len(pool))] if pool else None
