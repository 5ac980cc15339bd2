"""Answers that are there already, read as a guard reads its own: one pass over prompt and answer, one score per span."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from fairlead.core.claims import ClaimedAnswer, ClaimLabel, ClaimSpan, TokenSpan
from fairlead.guard.pieces import Pieces
from fairlead.models.generation import prompt_ids

if TYPE_CHECKING:
    from fairlead.guard.guard import Guard


class _Texts:
    """A padded batch; what `Model.capture` takes."""

    def __init__(self, rows: Sequence[Sequence[int]], pad_id: int) -> None:
        width = max(map(len, rows))
        self.input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
        self.attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
        for place, row in enumerate(rows):
            self.input_ids[place, : len(row)] = torch.tensor(row)
            self.attention_mask[place, : len(row)] = 1


@torch.no_grad()
def read_answers(
    guard: Guard, answers: Sequence[ClaimedAnswer], *, batch_size: int = 32
) -> Iterator[list[ClaimSpan]]:
    """The spans of each answer by the guard's segmenter, with scores.

    A span is labelled from the claims that it overlaps: unsupported where one of them is (contradicted before insufficient), supported
    where all with a label are, None where none has one.
    """
    model, readout = guard.model, guard.readout
    for start in range(0, len(answers), batch_size):
        rows, places, found = [], [], []
        for answer in answers[start : start + batch_size]:
            prompt = prompt_ids(model, list(answer.messages))
            response = list(model.tokenizer(answer.response, add_special_tokens=False)["input_ids"])
            row = [*prompt, *response][: model.max_length]
            spans = _spans(guard, row[len(prompt) :])
            places += [
                TokenSpan(len(rows), len(prompt) + first, len(prompt) + end) for first, end, _, _ in spans
            ]
            found.append([(from_char, to_char) for _, _, from_char, to_char in spans])
            rows.append(row)
        activations = model.capture(_Texts(rows, model.pad_id), readout.sites)
        scores = iter(readout.span_scores(activations, places).tolist() if places else [])
        for answer, spans in zip(answers[start : start + batch_size], found, strict=True):
            yield [_claim(answer, first, end, next(scores)) for first, end in spans]


def _spans(guard: Guard, tokens: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Spans of an answer: first token and the one after the last, first character and the one after the last (without spaces)."""
    lexicon = guard.lexicon
    pieces, found, text = Pieces(lexicon.table), [], ""
    first, first_char = 0, 0
    for place, token in enumerate(tokens):
        text += pieces.add(token)
        span = text[first_char:]
        last = place == len(tokens) - 1
        following = "" if last else lexicon.table.piece(token, tokens[place + 1])
        ends = lexicon.may_end(token) and lexicon.segmenter.ends(
            span, "\ufffd" if following is None else following
        )
        if ends or last:
            if lexicon.segmenter.is_claim(span):
                head = first_char + len(span) - len(span.lstrip())
                found.append((first, place + 1, head, first_char + len(span.rstrip())))
            first, first_char = place + 1, len(text)
    return found


def _claim(answer: ClaimedAnswer, start: int, end: int, score: float) -> ClaimSpan:
    labels = {claim.label for claim in answer.claims if claim.start < end and claim.end > start} - {None}
    label: ClaimLabel | None = next(
        (one for one in ("contradicted", "insufficient", "supported") if one in labels), None
    )
    end = min(end, len(answer.response))
    return ClaimSpan(start=start, end=end, text=answer.response[start:end], label=label, score=score)
