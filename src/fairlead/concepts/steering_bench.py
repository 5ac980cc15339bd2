"""What AutoSteer measures with: prompts, the model's own answers with and without a request, and what edits do to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fairlead.concepts.decisions import Matched, read_matched
from fairlead.concepts.edits import EditSet
from fairlead.concepts.steering import apply_edits, edited_logprobs, mean_loss
from fairlead.concepts.steering_report import Direction
from fairlead.core.errors import ConfigError
from fairlead.data import Encoded, Message, Row, encode, has_chat_template
from fairlead.dictionaries import Dictionary
from fairlead.probes import Probe, fit_probe, pool_answers

if TYPE_CHECKING:
    from fairlead.models import Model

Check = Callable[[int, str], bool]  # place of the prompt and answer to whether it shows the behaviour
NEUTRAL_REQUESTS = ("You are a helpful assistant.", "Answer the question.", "Please answer the user.")


class SteeringBench:
    """Prompts, the model's own answers with and without the request, and what an edit does to them."""

    def __init__(
        self,
        model: Model,
        dictionary: Dictionary,
        prompts: Sequence[str | Sequence[Any]],
        requests: tuple[str, ...],
        check: Check | None,
        direction: Direction,
        max_new_tokens: int,
        batch_size: int,
        examples: Sequence[str] | None = None,
    ) -> None:
        if len(prompts) < 16:
            raise ConfigError(
                f"{len(prompts)} prompts are too few to contrast and calibrate on. Next: pass 16 or more."
            )
        if examples is not None and len(examples) != len(prompts):
            raise ConfigError(
                f"{len(examples)} examples for {len(prompts)} prompts. Next: give one answer for each prompt."
            )
        if not has_chat_template(model.tokenizer):
            raise ConfigError(
                f"{model.name} has no chat template, so that nothing can be requested of it. Next: use a chat model."
            )
        self.model, self.dictionary, self.direction = model, dictionary, direction
        self.settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        self.chats = [_messages(prompt) for prompt in prompts]
        places = range(len(prompts))
        self.contrast_places, self.places = places[::2], places[1::2]
        asked = itertools.cycle(requests)
        self.asked_chats = [[Message("system", next(asked)), *chat] for chat in self.chats]
        neutral = itertools.cycle((None, *NEUTRAL_REQUESTS))
        self.neutral_chats = [
            chat if system is None else [Message("system", system), *chat]
            for chat, system in zip(self.chats, neutral, strict=False)
        ]
        self.plain = self._answer(self.chats)
        self.asked = self._answer(self.asked_chats)
        self.shown = self.asked if examples is None else list(examples)  # answers that show the behaviour
        self.auroc: float | None = None
        self.probe: Probe | None = None
        self.bound = 0.0
        self._check = check
        if check is None:
            self._fit_readout()
        self.base_chats = self.chats if direction == "on" else self.asked_chats
        self.judge_chats, own = (
            (self.asked_chats, self.asked) if direction == "on" else (self.chats, self.plain)
        )
        self.own_loss = self._loss(self.judge_chats, own)

    def _answer(self, chats: Sequence[Any], *, follower: Any = None) -> list[str]:
        return self.model.generate([list(chat) for chat in chats], follower=follower, **self.settings)

    def _encode(self, chats: Sequence[list[Message]], answers: Sequence[str]) -> list[Encoded]:
        rows = [
            Row(messages=(*chat, Message("assistant", answer.strip() or ".")))
            for chat, answer in zip(chats, answers, strict=True)
        ]
        return encode(rows, self.model.tokenizer, max_length=self.model.max_length, on_long="truncate")

    def _at(self, values: Sequence[Any], places: Sequence[int]) -> list[Any]:
        return [values[place] for place in places]

    def _loss(self, chats: Sequence[list[Message]], answers: Sequence[str]) -> float:
        """Of the unedited model, on the calibration prompts (or on as many answers as are given for them)."""
        answers = self._at(answers, self.places) if len(answers) == len(self.chats) else answers
        encoded = self._encode(self._at(chats, self.places), answers)
        return mean_loss(self.model.logprobs(encoded), encoded)

    def _fit_readout(self) -> None:
        """A probe between requested (or given) and plain answers of the contrast's prompts, read without the request; scored on the others.

        An answer counts where it scores as 95 % of those answers do: halfway there is not enough.
        """
        sides = []
        for places in (self.contrast_places, self.places):
            chats = self._at(self.chats, places)
            sides.append(
                [
                    pool_answers(
                        self.model, self._encode(chats, self._at(answers, places)), self.dictionary.site
                    )
                    for answers in (self.shown, self.plain)
                ]
            )
        self.probe = fit_probe(*sides[0], site=self.dictionary.site, heldout=0.0)
        self.auroc = self.probe.score(*sides[1])
        self.bound = max(0.0, float(self.probe(sides[1][0]).quantile(0.05)))

    def contrast(self) -> Matched:
        """Both sets of answers under both prompts; half of the prompts without the request have another one."""
        places = self.contrast_places
        sides: tuple[list[Encoded], list[Encoded]] = ([], [])
        for answers in (self.plain, self.shown):
            for side, chats in zip(sides, (self.asked_chats, self.neutral_chats), strict=True):
                side.extend(self._encode(self._at(chats, places), self._at(answers, places)))
        return read_matched(self.model, self.dictionary, *sides)

    def shows(self, answers: Sequence[str]) -> list[bool]:
        """Whether each answer to the calibration prompts shows the behaviour."""
        if self._check is not None:
            return [
                bool(self._check(place, answer)) for place, answer in zip(self.places, answers, strict=True)
            ]
        assert self.probe is not None
        encoded = self._encode(self._at(self.chats, self.places), answers)
        return (self.probe(pool_answers(self.model, encoded, self.dictionary.site)) > self.bound).tolist()

    def effect(self, answers: Sequence[str]) -> float:
        """Share of answers that are as wanted."""
        share = sum(self.shows(answers)) / len(answers)
        return share if self.direction == "on" else 1.0 - share

    def edited(self, edits: EditSet) -> list[str]:
        """Answers to the calibration prompts under edits."""
        with apply_edits(self.model, self.dictionary, edits) as session:
            return self._answer(self._at(self.base_chats, self.places), follower=session)

    def measure(self, edits: EditSet) -> dict[str, float]:
        """Effect and rise of the loss."""
        answers = self.edited(edits)
        return {
            "effect": self.effect(answers),
            "loss_rise": self._loss(self.judge_chats, answers) - self.own_loss,
        }

    def summary(self, edits: EditSet) -> dict[str, Any]:
        """What a report says besides the trials."""
        places = self.places
        base = self.plain if self.direction == "on" else self.asked
        plain = self._encode(self._at(self.neutral_chats, places), self._at(self.plain, places))
        neutral = (
            mean_loss(self.model.logprobs(plain), plain),
            mean_loss(self._logprobs(edits, plain), plain),
        )
        requested = None
        if self.direction == "on":
            texts = self._encode(self._at(self.chats, places), self._at(self.asked, places))
            requested = (self.own_loss, mean_loss(self._logprobs(edits, texts), texts))
        edited = self.edited(edits)
        samples = [
            (self.chats[place][-1].content, base[place], answer)
            for place, answer in list(zip(places, edited, strict=True))[:8]
        ]
        before = self.effect(self._at(base, places))
        return {
            "effect_before": before,
            "effect_request": self.effect(
                self._at(self.asked if self.direction == "on" else self.plain, places)
            ),
            "neutral_loss": neutral,
            "requested_loss": requested,
            "samples": tuple(samples),
        }

    def _logprobs(self, edits: EditSet, encoded: Sequence[Encoded]) -> list[Any]:
        return edited_logprobs(self.model, self.dictionary, edits, encoded)


def _messages(prompt: str | Sequence[Any]) -> list[Message]:
    if isinstance(prompt, str):
        return [Message("user", prompt)]
    made = [one if isinstance(one, Message) else Message(one["role"], one["content"]) for one in prompt]
    return [one for one in made if one.role != "system"]
