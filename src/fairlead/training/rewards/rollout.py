"""Rollouts: what the student is asked in a step, through TRL's `rollout_func`.

Groups come in two kinds. *Plain*: the question alone. *Intervention*: the question, an answer that the student has just given up to one of
its claims, and the injected text; the group goes on from there. One span is drawn per group, a flagged one where there is one. A
group stays within one process. Sampling itself is TRL's (`_generate_single_turn`, transformers or vLLM alike).

One rollout of a group may be replaced by a hint, a text that the student would hardly write by itself: "I do not know." to a plain
question or after a claim that the probe doubts, a defence of a claim that it believes. A group whose own rollouts try it needs none. A
hint's reward is that of any text, and it is never learned away from, only towards (`Setting.hinted`).
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
from fairlead.training.rewards.table import has_abstained

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

    def order(self, num: int) -> list[str]:
        """Questions for `num` groups as TRL's data set holds them: all of them once, in an order of the seed, then all again.

        Laid out for the whole training: TRL's own sampler carries a generator from epoch to epoch, which a resumed run lacks.
        """
        found: list[int] = []
        turn = 0
        while len(found) < num:
            found += sorted(range(len(self.questions)), key=lambda k: self.draw("order", turn, k))
            turn += 1
        return [str(place) for place in found[:num]]

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """Prompt and completion tokens for a process's share of a step, as TRL asks for them."""
        step, size = trainer.state.global_step, self.config.group_size
        groups = [int(prompt) for prompt in prompts[::size]]
        settings = self._settings(groups, step, trainer)
        tokenizer = self.model.tokenizer
        ids = [
            [*s.prompt_ids, *tokenizer(s.before, add_special_tokens=False)["input_ids"]]
            if s.before
            else [*s.prompt_ids]
            for s in settings
        ]
        repeated = [list(row) for row in ids for _ in range(size)]
        completions, logprobs = trainer._generate_single_turn(repeated, None, {}, size)
        self.settings = [setting for setting in settings for _ in range(size)]
        said = tokenizer.batch_decode(completions, skip_special_tokens=True)
        for group, setting in enumerate(settings):
            place = group * size + size - 1
            hint = self._hint(setting, groups[group], step, said[place - size + 1 : place + 1])
            if hint is not None:
                completions[place] = [
                    *tokenizer(hint, add_special_tokens=False)["input_ids"],
                    tokenizer.eos_token_id,
                ]
                if logprobs is not None:
                    # unknown: vLLM's correction would weigh a text that the student would not draw down to nothing
                    logprobs[place] = [None] * len(completions[place])
                self.settings[place] = setting._replace(hinted=True)
        return {"prompt_ids": repeated, "completion_ids": completions, "logprobs": logprobs}

    def _settings(self, groups: Sequence[int], step: int, trainer: Any) -> list[Setting]:
        """One per group: plain, or from a claim of an answer that the student gives now."""
        plain = [Setting(self.questions[place], self.prompts[place]) for place in groups]
        wanted = round(self.config.intervention_share * len(groups))
        if not wanted:
            return plain
        ids, _ = trainer._generate_single_turn([list(one.prompt_ids) for one in plain], None, {}, 1)
        answers = self.model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        texts = [
            Text(one.prompt_ids, answer, tuple(self.splitter(one.question, answer)))
            for one, answer in zip(plain, answers, strict=True)
        ]
        read = read_claims(self.model, self.readout, texts)
        spans = [
            choose_claim(claims, threshold=self.config.threshold, draw=self.draw("span", step, place))
            for claims, place in zip(read, groups, strict=True)
        ]
        order = sorted(range(len(groups)), key=lambda k: self.draw("kind", step, groups[k]))
        for k in pick_groups(spans, order, wanted=wanted, config=self.config):
            span = spans[k]
            assert span is not None, "a group without a claim was picked for an intervention"
            plain[k] = plain[k]._replace(
                before=f"{answers[k][: span.end]} {self.config.inject}", flagged=span
            )
        return plain

    def _hint(self, setting: Setting, place: int, step: int, own: Sequence[str]) -> str | None:
        """What to try in a group whose own rollouts do not: an abstention, or the defence of a claim that the probe believes."""
        config, span = self.config, setting.flagged
        believed = span is not None and (span.score or 0.0) <= 0.5
        hints = config.defences if believed else config.hints
        tried = any(has_abstained(text) is not believed for text in own)
        if tried or not hints or step >= config.hint_until:
            return None
        if self.draw("hint", step, place) >= config.hint_share:
            return None
        hint = hints[int(self.draw("which", step, place) * len(hints))]
        return hint if span is None else f" {hint.format(claim=span.text)}"

    def draw(self, what: str, step: int, place: int) -> float:
        """A number in [0, 1) that depends on seed, step and question alone, so that a resumed run draws the same."""
        digest = hashlib.sha256(f"{self.config.seed}:{what}:{step}:{place}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48


def choose_claim(claims: Sequence[ClaimSpan], *, threshold: float, draw: float) -> ClaimSpan | None:
    """The claim to intervene on: a flagged one where there is one, else any; None where there is none."""
    flagged = [claim for claim in claims if claim.score is not None and claim.score > threshold]
    pool = flagged or list(claims)
    return pool[int(draw * len(pool))] if pool else None


def pick_groups(
    spans: Sequence[ClaimSpan | None], order: Sequence[int], *, wanted: int, config: RewardConfig
) -> list[int]:
    """Which groups become interventions: flagged and unflagged claims in the wanted parts, as far as there are any.

    Args:
        spans: Each group's claim.
        order: The groups in the order in which they are taken.
        wanted: How many.
        config: Settings.
    """
    flagged = [k for k in order if (span := spans[k]) is not None and (span.score or 0.0) > config.threshold]
    others = [k for k in order if spans[k] is not None and k not in flagged]
    num_others = min(len(others), round(wanted * config.unflagged_share))
    taken = flagged[: wanted - num_others]
    return [*taken, *others[: wanted - len(taken) if config.unflagged_share else 0]]
