"""A second opinion on a flagged claim: the question is put in other ways, and a claim that the answers repeat is upheld.

A guard's score says how sure the model was when it wrote a claim. Asked again in another way, a model that has learned a fact tends to say
the same, one that guessed another thing each time; among claims whose scores are alike that tells more than the score (docs/guard.md).
Nothing is sampled: the other answers are greedy, and made only where a claim is flagged.

Two answers agree on a claim where the later one holds the claim's decisive word: of the words that the question does not hold
(function words of English aside), the one in front of which the model was least certain. Departure from SelfCheckGPT (Manakul et al.
2023, arXiv:2303.08896), which compares whole sentences with sampled answers by n-grams or by another model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import BaseModel, Field

from fairlead.core.errors import ConfigError, LLMError
from fairlead.llm import LanguageModel, quote_data
from fairlead.models.generation import generate_ids, prompt_ids

if TYPE_CHECKING:
    from fairlead.models import Model

OTHER_WAYS = (
    "Answer in plain words.",
    "Answer formally.",
    "Answer like a pirate.",
    "Answer with praise for the user.",
    "Answer with emoji.",
    "Please answer the question.",
    "Answer in one short sentence.",
    "You are a kind assistant.",
    "Reply to the user as an expert.",
    "You answer questions.",
    "Say only what you are sure of.",
    "Answer as a friend would.",
)
MAX_CHARS = 20_000
_WORD = re.compile(r"\w+")
Messages = list[dict[str, str]]
OtherWays = Callable[[Messages, int], Sequence[Messages]]


class Opinion(NamedTuple):
    """What other answers say of a claim.

    Attributes:
        word: The decisive word.
        agree: Answers that hold it.
        num: Answers.
    """

    word: str
    agree: int
    num: int

    @property
    def share(self) -> float:
        """Of the answers, those that agree."""
        return self.agree / self.num


def other_systems(messages: Messages, num: int) -> list[Messages]:
    """A request put in `num` other ways: with other system prompts, behind its own where it has one.

    Raises:
        ConfigError: More ways than there are.
    """
    if num > len(OTHER_WAYS):
        raise ConfigError(
            f"ask_again: {num} other ways, there are {len(OTHER_WAYS)}. Next: ask for fewer, or pass own `other_ways`."
        )
    own = " ".join(one["content"] for one in messages if one["role"] == "system")
    rest = [one for one in messages if one["role"] != "system"]
    return [[{"role": "system", "content": f"{own} {way}".strip()}, *rest] for way in OTHER_WAYS[:num]]


def ask_otherwise(
    model: Model, prompt: str | Sequence[Any], num: int, *, system: str | None, ways: OtherWays
) -> tuple[list[int], ...]:
    """Token ids of a request put in other ways.

    Raises:
        ConfigError: `ways` gives none.
    """
    messages = (
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [_as_dict(m) for m in prompt]
    )
    if system is not None:
        messages = [{"role": "system", "content": system}, *(m for m in messages if m["role"] != "system")]
    found = tuple(prompt_ids(model, way) for way in ways(messages, num))
    if not found:
        raise ConfigError(
            "ask_again: `other_ways` gave no way to put the request. Next: let it give one at least."
        )
    return found


class Rephrasings(BaseModel):
    """What a language model must answer when it is to put a question in other words."""

    questions: list[str] = Field(description="the same question in other words, each complete in itself")


def rephrased_by(llm: LanguageModel) -> OtherWays:
    """Other ways to put a request: its last question in other words, by a language model (any; it need not know the answer)."""

    def ways(messages: Messages, num: int) -> list[Messages]:
        task = (
            f"Put the question below in {num} other words. Each must ask for exactly the same thing, name everything that it names, and "
            "answer nothing."
        )
        question = quote_data(messages[-1]["content"], label="question", max_chars=MAX_CHARS)
        asked = [{"role": "user", "content": f"{task}\n\n{question}"}]
        found = llm.complete(asked, schema=Rephrasings, temperature=0.0)
        if not isinstance(found, Rephrasings) or not found.questions:
            raise LLMError(
                f"{llm.name}: gave no questions. Next: use another model, or ask again under other system prompts."
            )
        return [[*messages[:-1], {"role": "user", "content": one}] for one in found.questions[:num]]

    return ways


class SecondOpinion:
    """The other answers to one request, made when they are first needed.

    Args:
        model: Answers.
        again: Gives the token ids of the request put in other ways; called once, when first needed.
        stops: Token ids that end an answer.
        max_new_tokens: Longest answer.
    """

    def __init__(
        self,
        model: Model,
        again: Callable[[], Sequence[Sequence[int]]],
        *,
        stops: Collection[int],
        max_new_tokens: int,
    ) -> None:
        self.model, self.again, self.stops, self.max_new_tokens = model, again, set(stops), max_new_tokens

    @cached_property
    def answers(self) -> list[str]:
        """The other answers."""
        groups: dict[int, list[Sequence[int]]] = {}
        for prompt in self.again():  # one length at a time where the family ignores the attention mask
            groups.setdefault(0 if self.model.resolved.family.reads_mask else len(prompt), []).append(prompt)
        limit = self.max_new_tokens
        return [
            str(self.model.tokenizer.decode(ids, skip_special_tokens=True))
            for group in groups.values()
            for ids in generate_ids(self.model, group, max_new_tokens=limit, stops=self.stops)
        ]

    def on(
        self, prompt: Sequence[int], answer: Sequence[int], pieces: Sequence[str], claim: tuple[int, int]
    ) -> Opinion:
        """What the other answers say of a claim.

        Args:
            prompt: Token ids of the request.
            answer: Token ids of the answer so far, to the claim's end.
            pieces: Text of each of these.
            claim: The claim's first character in the answer, and the one behind its last.
        """
        text = "".join(pieces)
        asked = set(_words(str(self.model.tokenizer.decode(list(prompt)))))
        found = list(_WORD.finditer(text, *claim))
        news = [word for word in found if word.group().casefold() not in asked]
        words = [word for word in news if word.group().casefold() not in _common_words()] or news or found
        if not words:
            return Opinion("", 1, 1)
        doubt = self._doubt(prompt, answer)
        starts = [len("".join(pieces[:place])) for place in range(len(pieces))]

        def doubt_of(word: re.Match[str]) -> float:
            return max(
                (
                    value
                    for value, start, piece in zip(doubt, starts, pieces, strict=True)
                    if start < word.end() and start + len(piece) > word.start()
                ),
                default=0.0,
            )

        word = max(words, key=doubt_of).group()
        agree = sum(word.casefold() in _words(answer) for answer in self.answers)
        return Opinion(word, agree, len(self.answers))

    @torch.no_grad()
    def _doubt(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Entropy of the model's choice at each token of the answer, nats; read in one pass of its own."""
        ids = torch.tensor([[*prompt, *answer]], device=self.model.device)
        logits = self.model.hf(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        return torch.distributions.Categorical(logits=logits).entropy().tolist()


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


@cache
def _common_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return ENGLISH_STOP_WORDS


def _as_dict(message: Any) -> dict[str, str]:
    return message if isinstance(message, dict) else {"role": message.role, "content": message.content}
