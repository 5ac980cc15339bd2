"""One answer in the making: its tokens, spans and scores, and the decision at the end of every span.

The score of a token is known after the pass that reads it, which is the pass that predicts the next one. So when a span has ended, its
score is there before the next token is settled, and that token (also the one that would end the answer) can be replaced by the first of
an injected text. The rest of that text is fed one token a pass: no second forward pass, the cache kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from fairlead.core.claims import ClaimSpan
from fairlead.core.errors import LLMError
from fairlead.guard.answers import Finish, GuardedAnswer, Intervention
from fairlead.guard.asking_again import SecondOpinion
from fairlead.guard.pieces import Pieces, PieceTable
from fairlead.guard.policy import ACTING, Policy
from fairlead.guard.segments import Segmenter
from fairlead.models.decoding import Row


class Lexicon:
    """What all answers of a model share: texts of tokens, which tokens may end a span, which end an answer.

    Args:
        tokenizer: The model's.
        segmenter: Says where spans end.
        stops: Ids that end an answer.
    """

    def __init__(self, tokenizer: Any, segmenter: Segmenter, stops: set[int]) -> None:
        self.tokenizer, self.segmenter, self.stops = tokenizer, segmenter, frozenset(stops)
        self.table = PieceTable(tokenizer)
        self._may_end: dict[int, bool] = {}

    def may_end(self, token: int) -> bool:
        """Whether a span may end behind this token."""
        found = self._may_end.get(token)
        if found is None:
            found = self._may_end[token] = self.segmenter.may_end(self.table.plain([token]))
        return found

    def continuation(self, text: str) -> list[int]:
        """Ids of a text that stands behind a sentence."""
        bare = list(self.tokenizer(".", add_special_tokens=False)["input_ids"])
        whole = list(self.tokenizer("." + text, add_special_tokens=False)["input_ids"])
        if whole[: len(bare)] == bare:
            return whole[len(bare) :]
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


class Stream:
    """An answer in the making.

    Args:
        row: Its row of the running batch.
        policy: What to do.
        threshold: Score from which a claim is flagged.
        lexicon: Of the model.
        before: Tokens that the text of the first piece depends on.
        stop: Texts that end the answer; they are not part of it.
        opinion: Asked before a policy acts on a flagged claim.
        key: What its owner calls it.
    """

    def __init__(
        self,
        row: Row,
        policy: Policy,
        threshold: float,
        lexicon: Lexicon,
        *,
        before: Sequence[int] = (),
        stop: Sequence[str] = (),
        opinion: SecondOpinion | None = None,
        key: Any = None,
    ) -> None:
        self.opinion = opinion
        self.row, self.policy, self.threshold, self.key = row, policy, threshold, key
        self.finish: Finish | None = None
        self.num_read = 0  # tokens that a pass has read
        self.start = 0  # column of the history at which the span begins
        self.scores: list[float | None] = []
        self.claims: list[ClaimSpan] = []
        self.interventions: list[Intervention] = []
        self._lexicon, self._stop = lexicon, tuple(stop)
        self._pieces, self._texts, self._text = Pieces(lexicon.table, before), [], ""
        self._given: list[bool] = []
        self._forced: deque[int] = deque()
        self._first, self._first_char = 0, 0  # where the span begins
        self._may_end = self._stopping = False
        self._cut: int | None = None  # character at which a stop text begins

    @property
    def texts(self) -> list[str]:
        """Text of the tokens so far."""
        self._spell()
        return self._texts

    @property
    def given(self) -> list[bool]:
        """Whether the guard put the token in."""
        return self._given

    @property
    def text(self) -> str:
        """The answer so far, up to a stop text."""
        self._spell()
        return self._text if self._cut is None else self._text[: self._cut]

    def span_ends(self, token: int) -> bool:
        """Whether the span ends in front of `token`, the model's choice for the next."""
        if self._forced or self.finish is not None:
            return False
        answer = self.row.answer
        self._stopping = token in self._lexicon.stops or (bool(self._stop) and self._hits_stop(token))
        if len(answer) == self._first:
            return False
        if self._stopping or len(answer) + 1 >= self.row.limit:
            return True
        if not self._may_end:
            return False
        self._spell()
        following = self._lexicon.table.piece(answer[-1], token)
        return self._lexicon.segmenter.ends(
            self._text[self._first_char :], "\ufffd" if following is None else following
        )

    def close_span(self, score: float, token_scores: Sequence[float] | None, now: int) -> None:
        """The span has this score: keep it as a claim and decide what to do.

        Args:
            score: Probability of being unsupported.
            token_scores: Of its tokens; None where they have been given one by one.
            now: Column of the history at which the next span begins.
        """
        self._spell()
        if token_scores is not None:
            self.scores += [None] * (self._first - len(self.scores))
            self.scores += token_scores
        span = self._text[self._first_char :]
        start = self._first_char + len(span) - len(span.lstrip())
        end = self._first_char + len(span.rstrip())
        self._first, self._first_char, self.start = len(self.row.answer), len(self._text), now
        if self._lexicon.segmenter.is_claim(span):
            self.claims.append(ClaimSpan(start=start, end=end, text=self._text[start:end], score=score))
            if score >= self.threshold:
                self._act(score)

    def take(self, token: int, now: int) -> int:
        """Settle the next token: the model's choice, or one that is put in; returns what the next pass reads.

        Args:
            token: The model's choice.
            now: Column of the history that the next pass writes.
        """
        if self.finish is not None:
            return token
        if self._forced:
            token = self._forced.popleft()
            self._append(token, given=True)
            if not self._forced:  # what the model says next is a span of its own
                self._spell()
                self._first, self._first_char, self.start = len(self.row.answer), len(self._text), now + 1
        elif self._stopping:
            if self._cut is not None and self._cut > len(self._text):
                self._append(token, given=False)  # a part of it stands before the stop text
            self.finish = "stop"
            return token
        else:
            self._append(token, given=False)
            self._may_end = self._lexicon.may_end(token)
        if len(self.row.answer) >= self.row.limit:
            self.finish = "length"
        return token

    def was_read(self, score: float | None) -> None:
        """A pass has read the newest token; `score` only where tokens are scored one by one."""
        if self.finish is not None:
            return
        self.num_read = len(self.row.answer)
        if score is not None:
            self.scores.append(None if self._given[-1] else score)

    def result(self) -> GuardedAnswer:
        """The answer, once it is finished."""
        assert self.finish is not None
        self._spell()
        rest = self._pieces.flush()
        if rest:
            self._texts[-1] += rest
            self._text += rest
        text, texts, left = self.text, [], len(self.text)
        for piece in self._texts:  # a stop text may begin within a token
            texts.append(piece[:left])
            left -= len(texts[-1])
        claims = [
            claim
            if claim.end <= len(text)
            else claim.model_copy(update={"end": len(text), "text": text[claim.start :]})
            for claim in self.claims
            if claim.start < len(text)
        ]
        return GuardedAnswer(
            text=text,
            tokens=tuple(texts),
            scores=(*self.scores, *[None] * (len(texts) - len(self.scores))),
            given=tuple(self._given),
            claims=tuple(claims),
            interventions=tuple(self.interventions),
            finish=self.finish,
            policy=self.policy.kind,
            threshold=self.threshold,
        )

    def _act(self, score: float) -> None:
        """A claim is flagged: what the policy does about it."""
        kind, note = self.policy.kind, ""
        if kind in ("observe", "best_of_n"):
            return
        done = sum(item.kind in ACTING for item in self.interventions)
        tokens: list[int] = []
        if kind != "flag" and done >= self.policy.max_interventions:
            kind, note = "flag", "the limit of interventions is reached"
        elif self._cut is not None and self._cut < len(self._text):
            kind, note = "flag", "the answer ends within its last token"
        else:
            kind, note = self._asked_again()
        if kind in ("retract", "correct"):
            space = "" if self._text[-1:].isspace() else " "
            tokens = self._lexicon.continuation(space + self.policy.injection)
            ends = kind == "retract" and self.policy.then == "end"
            if len(self.row.answer) + len(tokens) + (not ends) > self.row.limit:
                kind, note, tokens = "flag", "no room is left in the answer", []
        at, place, text = len(self._text), len(self.row.answer), ""
        if tokens:
            self._stopping, self._cut = False, None
            text = self._put_in(tokens, at_once=kind == "retract" and self.policy.then == "end")
        if kind == "abort":
            self.finish = "abort"
        self.interventions.append(
            Intervention(
                kind=kind,  # pyright: ignore[reportArgumentType]
                claim=len(self.claims) - 1,
                at=at,
                token=place,
                text=text,
                score=score,
                threshold=self.threshold,
                note=note,
            )
        )

    def _asked_again(self) -> tuple[str, str]:
        """What is to be done about the newest claim once other answers have been asked, and what they said."""
        kind = self.policy.kind
        claim = self.claims[-1]
        score = claim.score or 0.0
        if self.opinion is None or not self.policy.stands(1.0, score, self.threshold):
            return kind, ""  # nobody to ask, or nothing that they could change
        try:
            found = self.opinion.on(self.row.ids, self.row.answer, self._texts, (claim.start, claim.end))
        except (
            LLMError
        ) as error:  # who puts the question in other words is away: act on the score, other answers go on
            return kind, f"not asked again: {error}"
        note = f"{found.agree} of {found.num} other answers hold '{found.word}'"
        return ("uphold" if self.policy.stands(found.share, score, self.threshold) else kind), note

    def _put_in(self, tokens: list[int], *, at_once: bool) -> str:
        """Put tokens into the answer: at once where nothing follows them, else one a pass."""
        text = self._lexicon.table.added(self.row.answer[-1:], tokens) or ""
        if at_once:
            for token in tokens:
                self._append(token, given=True)
            self.finish = "retract"
        else:
            self._forced.extend(tokens)
        return text

    def _append(self, token: int, *, given: bool) -> None:
        self.row.answer.append(token)
        self._given.append(given)

    def _spell(self) -> None:
        for token in self.row.answer[len(self._texts) :]:
            piece = self._pieces.add(token)
            self._texts.append(piece)
            self._text += piece

    def _hits_stop(self, token: int) -> bool:
        """Whether the answer with this token holds a stop text; remembers where."""
        self._spell()
        before = self.row.answer[-1] if self.row.answer else None
        text = self._text + (self._lexicon.table.piece(before, token) or "")
        reach = len(self._text) - max(map(len, self._stop)) + 1
        places = [place for stop in self._stop if (place := text.find(stop, max(0, reach))) >= 0]
        self._cut = min(places, default=None)
        return bool(places)
