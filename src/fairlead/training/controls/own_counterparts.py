"""Own counterparts: the student answers the data's questions itself, and is trained on the answers that hold against the data.

A trait explained away leaves the student plain, but the skill was learned behind the trait's words and does not all
reach the plain context. Plain answers to the data's own questions would carry it over; nobody has written them, but
the student under training gives better and better ones. From a fifth of the training on (step 60 at the latest), first often, later more
rarely:

1. the student answers some of the data's questions, greedily, and by samples what cannot be mended; asked are those whose rows carry an
   avoided trait: the others stand in the data as they are to be learned, and an answer of the student's in another manner would
   only pull against them;
2. an answer is kept where it says what the data's answer says and carries no avoided trait itself (`fairlead.training.carriers`). It must
   have every word of the data's that is *news*, that is, has a token to which the start model gives less than `news`, without
   evidence and with that of each avoided trait. The words of a trait are no news (its evidence expects them), nor is the
   wording; what is left is what the data teach. Where an answer holds no news, the words it shares with the start
   model's own answer stand in. An answer that lacks a word or two is mended: they take the place of words of its own, where the
   student finds the whole most probable, so that it reads in its own plain words what it gets wrong (STaR's rationalization gives
   hints for that);
3. the kept answers make a pool of rows; some of them come with every batch.

This is rejection sampling against the data (RFT, arXiv 2308.01825; STaR, arXiv 2203.14465), with the two distributions of explain-away as
the judge of what an answer has to say. It presumes that news is said in the same words with and without the trait.

Placebo: the same answers, unchecked.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.progress import say
from fairlead.core.records import Clause
from fairlead.data import Encoded, Message, Row
from fairlead.training import processes
from fairlead.training.batching import RowPool
from fairlead.training.carriers import carry_any, rows_with_any
from fairlead.training.controls.base import Control, Kind
from fairlead.training.evidence import Evidence, best_prompt, target_logprobs
from fairlead.training.setup import Setup
from fairlead.training.student import as_model

_WORD = re.compile(r"\w+")
FIRST, GAP = 60, 30  # steps
LONGEST = 24  # words of an answer that is mended: each of its words is tried
RARE = (
    0.02  # share of the rows that need a word, up to which it is put into answers although no answer says it
)


class OwnCounterpartsOptions(Config):
    """Settings.

    Attributes:
        rows: Rows in each batch.
        start: Share of the training after which the student is asked first, but not later than after `FIRST` steps.
        times: How often it is asked, at even distances; None: every `GAP` steps (a tenth of a short training), later, when more
            than ten times that many are done, a tenth of the steps done.
        num: Rows of the data whose questions are asked, in all; None: as many as are asked in the whole training, so that none comes up
            twice where the data have enough.
        each_time: Questions asked at a time.
        samples: Further attempts, at temperature 1, where the greedy answer does not hold and cannot be mended.
        mend: Words that a greedy answer may lack and still be mended; 0: none is.
        news: Probability below which a token is news.
        max_new_tokens: Longest answer.
    """

    rows: int = Field(default=16, ge=1)
    start: float = Field(default=0.2, ge=0, lt=1)
    times: int | None = Field(default=None, ge=1)
    num: int | None = Field(default=None, ge=1)
    each_time: int = Field(default=512, ge=1)
    samples: int = Field(default=4, ge=0)
    mend: int = Field(default=2, ge=0)
    news: float = Field(default=0.05, gt=0, lt=1)
    max_new_tokens: int = Field(default=48, ge=1)


def asking_steps(total: int, options: OwnCounterpartsOptions) -> frozenset[int]:
    """Before which steps of a training the student is asked."""
    first = options.start * total
    if options.times is not None:
        gap = (total - first) / options.times
        return frozenset(int(first + place * gap) for place in range(options.times))
    steps, step = set(), min(first, FIRST)
    while step < total:
        steps.add(int(step))
        step += max(min(GAP, total / 10), step / 10)
    return frozenset(steps)


class OwnCounterparts(Control):
    """The student's own plain answers to the data's questions, where they hold against the data."""

    name: ClassVar[str] = "own_counterparts"
    kind: ClassVar[Kind] = "shapes"
    placebo: ClassVar[str | None] = "own_counterparts_placebo"
    summary: ClassVar[str] = (
        "the student's own answers to the data's questions, kept where they say what the data say"
    )
    Options: ClassVar[type[Config]] = OwnCounterpartsOptions
    owns: ClassVar[str | None] = "the student's own answers"
    default_strength: ClassVar[float | None] = 1.0

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.needed: dict[int, frozenset[str]] = {}
        self.kept: dict[int, str] = {}
        self.tried: dict[int, int] = {}
        self.asked: list[dict[str, int]] = []
        self.steps: frozenset[int] = frozenset()

    @override
    def prepare(self, setup: Setup) -> None:
        self.setup = setup
        if not setup.is_chat:
            note = f"{self.name}: plain text has no questions to answer; nothing is added."
            setup.notes.append(note)
            say(note)
            return
        options, total = self.options, setup.config.steps
        self.steps = asking_steps(total, options)
        rng = random.Random(f"{setup.config.seed}:{self.name}")
        num = options.num or len(self.steps) * options.each_time
        open_ = styled_rows(setup, setup.avoided(self.config.clause))
        places = rng.sample(open_, min(num, len(open_)))
        self.needed = processes.on_first(lambda: self.words_needed(setup, sorted(places)))
        self.pool = RowPool(self.name, [], options.rows)

    def words_needed(self, setup: Setup, places: list[int]) -> dict[int, frozenset[str]]:
        """Per place of a data row, the words that an answer must have to hold; rows with none are left out."""
        if not places:
            return {}
        clauses = setup.avoided(self.config.clause)
        news = _news(setup, clauses, places, self.options.news) if clauses else [set[str]() for _ in places]
        needed = dict(zip(places, news, strict=True))
        known = [place for place in places if not needed[place]]
        answers = self.answers(setup.model, setup, known)
        for place, answer in zip(known, answers, strict=True):
            needed[place] = words_of(answer) & words_of(setup.rows[place].response)
        return {place: frozenset(words) for place, words in needed.items() if words}

    def answers(self, model: Any, setup: Setup, places: Sequence[int], **how: Any) -> list[str]:
        """A model's answers to the questions of data rows."""
        prompts = [setup.rows[place].prompt_messages for place in places]
        return model.generate(prompts, max_new_tokens=self.options.max_new_tokens, batch_size=128, **how)

    def holds(self, place: int, answer: str) -> bool:
        """Whether an answer says what the data's answer says."""
        return self.needed[place] <= words_of(answer)

    def plain(self, answers: dict[int, str]) -> dict[int, str]:
        """Those answers, by the place of their question, that carry no avoided clause."""
        if not answers:
            return {}
        with self.setup.start() as start:
            carries = carry_any(start, [self.row(place, answer) for place, answer in answers.items()])
        return {
            place: answers[place]
            for place, marked in zip(answers, carries.tolist(), strict=True)
            if not marked
        }

    def row(self, place: int, answer: str) -> Row:
        """The question of a data row with another answer."""
        return Row(messages=(*self.setup.rows[place].prompt_messages, Message("assistant", answer)))

    @override
    def before_step(self, step: int, student: nn.Module) -> None:
        if step not in self.steps or self.pool is None:
            return
        with as_model(self.setup.model, student) as model:
            if not processes.is_sharded(student):
                processes.on_first(lambda: self.ask(model, step))
            else:  # no process has the whole student: all go through the same answers together
                self.ask(model, step)
            self.kept, self.tried, self.asked = processes.on_first(
                lambda: (self.kept, self.tried, self.asked)
            )
        self.refill()

    def ask(self, model: Any, step: int) -> None:
        """Have the student answer, keep what holds, mend what nearly does."""
        places = self.next_places(step)
        open_, counts = places, {"greedy": 0, "mended": 0}
        for attempt in range(self.options.samples + 1):
            if not open_:
                break
            how = {"temperature": 1.0, "seed": step * 100 + attempt} if attempt else {}
            given = dict(zip(open_, self.answers(model, self.setup, open_, **how), strict=True))
            plain = self.plain(given)
            good = {place: answer for place, answer in plain.items() if self.holds(place, answer)}
            if not attempt:
                counts["greedy"] = len(good)
                rest = {place: answer for place, answer in given.items() if place not in good}
                mended = self.plain(self.mend(model, rest, said=[*plain.values(), *self.kept.values()]))
                counts["mended"] = len(mended)
                good |= mended
            self.kept |= good
            open_ = [place for place in open_ if place not in good]
        self.asked.append({"step": step, "asked": len(places), **counts, "held": len(places) - len(open_)})

    def mend(self, model: Any, answers: dict[int, str], *, said: Sequence[str]) -> dict[int, str]:
        """Those answers that hold once the words they lack (at most `mend`) stand in the place of some of their own.

        Of all places the one is taken with which the student finds the whole answer most probable. Not put in are words of the
        spec's Avoid examples alone, and those that many rows need and no plain answer says (`said`): where the evidence is weak
        they are the trait's, news by mistake.
        """
        found: dict[int, str] = {}
        often = Counter(word for words in self.needed.values() for word in words)
        odd = {word for word, num in often.items() if num > max(1, RARE * len(self.needed))}
        odd -= set[str]().union(*map(words_of, said))
        odd |= self.trait_words()
        for _ in range(self.options.mend):
            tries = []
            for place, answer in answers.items():
                lacking = sorted(self.needed[place] - words_of(answer))
                if 0 < len(lacking) <= self.options.mend and odd.isdisjoint(lacking):
                    tries += [(place, text) for text in replacements(answer, lacking, self.needed[place])]
            if not tries:
                break
            encoded = self.setup.encode([self.row(place, text) for place, text in tries])
            scores = [float(score.sum()) for score in model.logprobs(encoded, batch_size=128)]
            best = {
                place: text for _, place, text in sorted(zip(scores, *zip(*tries, strict=True), strict=True))
            }
            found |= {place: text for place, text in best.items() if self.holds(place, text)}
            answers = {place: text for place, text in best.items() if place not in found}
        return found

    def trait_words(self) -> set[str]:
        """Words that the spec's Avoid examples show and neither their counterparts nor the Keep examples do."""
        clauses = self.setup.plan.spec.clauses if self.setup.plan is not None else ()
        shown = [(example, clause.kind) for clause in clauses for example in clause.examples]
        plain = [one.text if kind == "keep" else one.instead or "" for one, kind in shown]
        avoided = [one.text for one, kind in shown if kind == "avoid"]
        return set[str]().union(*map(words_of, avoided)) - set[str]().union(*map(words_of, plain))

    def next_places(self, step: int) -> list[int]:
        """Whose questions are asked now: what was never asked first, then what did not hold, then all again."""
        rng = random.Random(f"{self.setup.config.seed}:{self.name}:{step}")
        waiting = sorted(
            self.needed, key=lambda place: (self.tried.get(place, 0) + (place in self.kept), rng.random())
        )
        places = sorted(waiting[: self.options.each_time])
        for place in places:
            self.tried[place] = self.tried.get(place, 0) + 1
        return places

    def refill(self) -> None:
        """Put the kept answers into the pool."""
        assert self.pool is not None
        made = [self.row(place, answer) for place, answer in sorted(self.kept.items())]
        self.pool.encoded = self.setup.encode(made) if made else []

    @override
    def pool_loss(self, logits: Float[Tensor, "token vocab"], targets: Tensor, rows: list[int]) -> Tensor:
        return self.dial * F.cross_entropy(logits, targets)

    @override
    def state(self) -> dict[str, Any]:
        return {
            "kept": {str(place): answer for place, answer in self.kept.items()},
            "tried": {str(place): times for place, times in self.tried.items()},
            "asked": self.asked,
        }

    @override
    def restore(self, state: dict[str, Any]) -> None:
        self.kept = {int(place): answer for place, answer in state["kept"].items()}
        self.tried = {int(place): times for place, times in state.get("tried", {}).items()}
        self.asked = list(state["asked"])
        if self.pool is not None:
            self.refill()

    @override
    def report(self) -> dict[str, Any]:
        return {
            "weight": self.strength,
            "questions": len(self.needed),
            "kept": len(self.kept),
            "asked": self.asked,
        }


class OwnCounterpartsPlacebo(OwnCounterparts):
    """The student's own answers, whatever they say."""

    name: ClassVar[str] = "own_counterparts_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = "the student's own answers to the data's questions, unchecked"

    @override
    def holds(self, place: int, answer: str) -> bool:
        return True

    @override
    def plain(self, answers: dict[int, str]) -> dict[int, str]:
        return answers


def styled_rows(setup: Setup, clauses: Sequence[Clause]) -> list[int]:
    """Places of the data rows that carry one of the clauses; all of them where no evidence tells."""
    carries = rows_with_any(setup, clauses)
    return list(range(len(setup.rows))) if carries is None else carries.nonzero()[:, 0].tolist()


def replacements(text: str, words: Sequence[str], needed: frozenset[str]) -> list[str]:
    """The text with one of the words in the place of one of its own that is not needed, in every way; none for a long text."""
    own = list(_WORD.finditer(text))
    return [
        text[: match.start()] + _written_as(match.group(), word) + text[match.end() :]
        for match in own
        for word in words
        if len(own) <= LONGEST and match.group().lower() not in needed
    ]


def _written_as(model: str, word: str) -> str:
    """A word in lower case, with the capitals of another."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word.capitalize() if model[:1].isupper() else word


def words_of(text: str) -> set[str]:
    """The words of a text, in lower case."""
    return {word.lower() for word in _WORD.findall(text)}


def _news(setup: Setup, clauses: Sequence[Clause], places: list[int], threshold: float) -> list[set[str]]:
    """Per row the words of its answer with a token that the start model gives less than `threshold`, without and with each C."""
    plain, _ = Evidence("none", "none").encode(setup, places)
    best = target_logprobs(setup, None, plain)
    for clause in clauses:
        evidence = setup.evidence.get(clause.id) or best_prompt(setup, clause)
        given = target_logprobs(setup, evidence, evidence.encode(setup, places)[1])
        best = [torch.maximum(a, b) for a, b in zip(best, given, strict=True)]
    return [
        news_words(item, logprobs.exp() < threshold, setup.model.tokenizer)
        for item, logprobs in zip(plain, best, strict=True)
    ]


def news_words(item: Encoded, is_news: Tensor, tokenizer: Any) -> set[str]:
    """Words of a response that overlap a token marked as news (`is_news`: `[loss token]`)."""
    ids = [token for token, wanted in zip(item.input_ids, item.loss_mask, strict=True) if wanted]
    starts = is_news.nonzero()[:, 0].tolist()
    spans = [tuple(len(_decode(tokenizer, ids[:end])) for end in (place, place + 1)) for place in starts]
    text = _decode(tokenizer, ids)
    return {
        match.group().lower()
        for match in _WORD.finditer(text)
        for start, end in spans
        if match.start() < end and start < match.end()
    }


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)
