"""A guard: a model, a readout and a threshold, and answers under any policies, in one batch.

```python
guard = Guard(model, readout, threshold=0.7)
guard.answer(["Where does Lumfolia live?"], policy=Policy(kind="correct"))[0].interventions
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fairlead.core.errors import ConfigError, ModelError
from fairlead.core.nouns import Readout, SpanReadout
from fairlead.core.progress import Meter
from fairlead.guard.answers import GuardedAnswer
from fairlead.guard.asking_again import OtherWays, SecondOpinion, ask_otherwise, other_systems
from fairlead.guard.calibration import Calibration
from fairlead.guard.policy import Policy
from fairlead.guard.readouts import as_span_readout
from fairlead.guard.running import GuardedBatch
from fairlead.guard.segments import Segmenter, Sentences
from fairlead.guard.stream import Lexicon, Stream
from fairlead.models.decoding import Row
from fairlead.models.generation import prompt_ids, stop_ids

if TYPE_CHECKING:
    from torch import Tensor

    from fairlead.models import Model

DEFAULT_THRESHOLD = 0.5
OBSERVE = Policy()


@dataclass(frozen=True)
class Request:
    """One question to a guarded model.

    Attributes:
        ids: Token ids of the prompt.
        max_new_tokens: Longest answer, with what the guard puts in.
        temperature: 0 for greedy; `best_of_n` samples at 1 where it is 0.
        top_p: Sample from the most probable tokens that hold this share.
        seed: Of sampling.
        policy: What to do with unsupported claims.
        stop: Texts that end the answer.
        plain: Whether the prompt is plain text that the answer continues (its first piece may then need a space).
        draws: `[n, max_new_tokens]` uniform numbers in the place of those of the seed.
        again: Gives the token ids of the request put in other ways, for policies that ask again; called where a claim is flagged.
    """

    ids: Sequence[int]
    max_new_tokens: int = 48
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    policy: Policy = OBSERVE
    stop: tuple[str, ...] = ()
    plain: bool = False
    draws: Tensor | None = None
    again: Callable[[], Sequence[Sequence[int]]] | None = None

    @property
    def num_draws(self) -> int:
        """Answers to draw for this one."""
        return self.policy.n if self.policy.kind == "best_of_n" else 1


class Guard:
    """A model that is read while it talks.

    Args:
        model: A causal model.
        readout: Probability that a span is unsupported, from activations; a plain `Readout` is pooled (`TokenReadout`).
        threshold: Probability from which a claim is flagged, where a policy names none; that of the calibration by default.
        calibration: How the threshold was found.
        segmenter: Where claims end; sentences by default.
        any_model: Accept a readout of another model (of the one this was trained from: what it reads drifts with training).
        other_ways: Puts a request (messages) in so many other ways, for policies with `ask_again`; by default under other system prompts.

    Raises:
        ModelError: An encoder cannot generate; or the readout was made for another model.
        ConfigError: A LoRA probe.
    """

    def __init__(
        self,
        model: Model,
        readout: SpanReadout | Readout,
        *,
        threshold: float | None = None,
        calibration: Calibration | None = None,
        segmenter: Segmenter | None = None,
        any_model: bool = False,
        other_ways: OtherWays = other_systems,
    ) -> None:
        if not model.is_causal:
            raise ModelError(f"{model.name}: an encoder cannot generate. Next: use a causal model.")
        made_for = getattr(readout, "model_fingerprint", "")
        if made_for and made_for != model.fingerprint and not any_model:
            raise ModelError(
                f"the readout was made for another model (fingerprint {made_for[:12]}, {model.name} has {model.fingerprint[:12]}). "
                "Next: fit one for this model, or say any_model."
            )
        if getattr(readout, "adapters", None):
            raise ConfigError(
                "a LoRA probe reads the model with its adapters on, which is another pass than the one that writes the answer; a guard has "
                "that one only. Next: fit a probe of another kind (--kind attention)."
            )
        self.model, self.readout, self.calibration = model, as_span_readout(readout), calibration
        for site in self.readout.sites:
            model.module_at(site)
        if threshold is None:
            threshold = calibration.threshold if calibration is not None else DEFAULT_THRESHOLD
        self.threshold = threshold
        self.other_ways = other_ways
        self.segmenter: Segmenter = segmenter or Sentences()
        self.lexicon = Lexicon(model.tokenizer, self.segmenter, stop_ids(model))

    def request(
        self,
        prompt: str | Sequence[Any],
        *,
        system: str | None = None,
        chat: bool | None = None,
        **settings: Any,
    ) -> Request:
        """A request for a prompt, as `Model.generate` takes it; `settings` are fields of `Request`.

        Raises:
            ModelError: The prompt leaves no room for an answer.
            ConfigError: A setting is out of range.
        """
        from fairlead.data.template import has_chat_template

        request = Request(prompt_ids(self.model, prompt, system=system, chat=chat), **settings)
        if len(request.ids) >= self.model.max_length:
            raise ModelError(
                f"the prompt has {len(request.ids)} tokens, {self.model.name} takes at most {self.model.max_length} with the answer. "
                "Next: shorten it."
            )
        if request.max_new_tokens < 1 or request.temperature < 0 or not 0 < request.top_p <= 1:
            raise ConfigError(
                f"max_new_tokens {request.max_new_tokens}, temperature {request.temperature} and top_p {request.top_p} must be at least "
                "1, at least 0, and above 0 and at most 1. Next: change them."
            )
        policy, can_ask = (
            self.filled(request.policy),
            chat is not False and has_chat_template(self.model.tokenizer),
        )
        if policy.asks_again and can_ask:
            request = replace(request, again=self._again(prompt, policy.ask_again or 0, system=system))
        elif request.policy.asks_again:
            raise ConfigError(
                "ask_again: a plain text cannot be put in another way. Next: ask as a chat (the model needs a chat template), or leave "
                "ask_again at 0."
            )
        plain = isinstance(prompt, str) and not has_chat_template(self.model.tokenizer)
        return replace(request, plain=True) if plain else request

    def streams(self, request: Request, key: Any = None) -> list[Stream]:
        """The rows that answer a request: one, or several draws for `best_of_n`."""
        num, policy = request.num_draws, self.filled(request.policy)
        temperature = request.temperature or (1.0 if policy.kind == "best_of_n" else 0.0)
        draws: list[list[float] | None] = [None] * num
        if temperature > 0:
            numbers = request.draws
            if numbers is None:
                generator = torch.Generator().manual_seed(request.seed)
                numbers = torch.rand(num, request.max_new_tokens, generator=generator)
            draws = list(numbers.tolist())
        limit = min(request.max_new_tokens, self.model.max_length - len(request.ids))
        opinion = None
        if policy.asks_again and request.again is not None:
            opinion = self._opinion(request.again, request.max_new_tokens)
        elif request.policy.asks_again:
            raise ConfigError(
                "ask_again: the request does not say in which other ways. Next: make it with `Guard.request`, or set `again`."
            )
        return [
            Stream(
                Row(request.ids, limit, temperature, request.top_p, own, key=key),
                policy,
                self.threshold if policy.threshold is None else policy.threshold,
                self.lexicon,
                before=request.ids if request.plain else (),
                stop=request.stop,
                opinion=opinion,
                key=key,
            )
            for own in draws
        ]

    def filled(self, policy: Policy) -> Policy:
        """A policy with what the calibration says where it leaves that open."""
        own = self.calibration
        return policy.filled() if own is None else policy.filled(own.ask_again, own.uphold, own.slope)

    def second_opinion(
        self, prompt: str | Sequence[Any], num: int, *, max_new_tokens: int = 64
    ) -> SecondOpinion:
        """The answers to a request put in `num` other ways."""
        return self._opinion(self._again(prompt, num, system=None), max_new_tokens)

    def _again(
        self, prompt: str | Sequence[Any], num: int, *, system: str | None
    ) -> Callable[[], Sequence[Sequence[int]]]:
        return partial(ask_otherwise, self.model, prompt, num, system=system, ways=self.other_ways)

    def _opinion(self, again: Callable[[], Sequence[Sequence[int]]], max_new_tokens: int) -> SecondOpinion:
        return SecondOpinion(self.model, again, stops=self.lexicon.stops, max_new_tokens=max_new_tokens)

    def batch(self, *, live: bool = False) -> GuardedBatch:
        """A running batch of this guard; use it as a context manager."""
        return GuardedBatch(self.model, self.readout, live=live)

    def answer(
        self,
        prompts: Sequence[str | Sequence[Any]],
        *,
        policy: Policy | Sequence[Policy] | None = None,
        system: str | None = None,
        chat: bool | None = None,
        max_new_tokens: int = 48,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
        progress: str | None = None,
    ) -> list[GuardedAnswer]:
        """Answers to prompts, in their order; under `observe` their texts are those of `Model.generate`.

        Args:
            prompts: Strings (a user turn) or lists of messages.
            policy: One for all, or one per prompt; `observe` by default.
            system: System message for all prompts.
            chat: See `Model.generate`.
            max_new_tokens: Longest answer, with what the guard puts in.
            temperature: 0 for the most probable token each time.
            top_p: Sample from the most probable tokens that hold this share.
            seed: Of sampling; an answer depends on it, the prompt, its place and `max_new_tokens`.
            batch_size: Most rows at a time.
            progress: Label of a progress display.
        """
        policies = [policy or OBSERVE] * len(prompts) if not isinstance(policy, Sequence) else list(policy)
        if len(policies) != len(prompts):
            raise ConfigError(
                f"{len(policies)} policies for {len(prompts)} prompts. Next: give one, or one each."
            )
        shared = None
        if temperature > 0:
            shared = torch.rand(len(prompts), max_new_tokens, generator=torch.Generator().manual_seed(seed))
        requests = [
            self.request(
                prompt,
                system=system,
                chat=chat,
                policy=own,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed + place,
                draws=None if shared is None or own.kind == "best_of_n" else shared[place : place + 1],
            )
            for place, (prompt, own) in enumerate(zip(prompts, policies, strict=True))
        ]
        found: list[GuardedAnswer | None] = [None] * len(requests)
        meter = Meter(progress, len(requests), unit="answers") if progress else None
        for place, answer in self.run(requests, batch_size=batch_size):
            found[place] = answer
            if meter is not None:
                meter.advance()
        if meter is not None:
            meter.close()
        return [answer for answer in found if answer is not None]

    def run(
        self, requests: Sequence[Request], *, batch_size: int = 64
    ) -> Iterator[tuple[int, GuardedAnswer]]:
        """Answer requests, prompts of like length together; yields places and answers as they are done."""
        order = sorted(range(len(requests)), key=lambda place: len(requests[place].ids))
        waiting = [stream for place in order for stream in self.streams(requests[place], key=place)]
        drawn: dict[int, list[Stream]] = {}
        with self.batch() as batch:
            while waiting or batch.streams:
                if (
                    2 * len(batch.streams) <= batch_size
                ):  # joining costs a copy of the cache: not for every row that leaves
                    batch.admit(waiting, batch_size)
                for stream in batch.step():
                    group = drawn.setdefault(stream.key, [])
                    group.append(stream)
                    if len(group) == requests[stream.key].num_draws:
                        yield stream.key, pick(drawn.pop(stream.key))


def pick(streams: Sequence[Stream]) -> GuardedAnswer:
    """The answer of finished draws: the one whose worst claim scores lowest (the first of equals)."""
    answers = [stream.result() for stream in streams]
    if len(answers) == 1:
        return answers[0]
    best = min(answers, key=lambda answer: answer.worst)
    return best.model_copy(update={"rivals": tuple(answer.worst for answer in answers)})
