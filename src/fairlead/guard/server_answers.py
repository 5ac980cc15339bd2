"""From the guard's answers to what a client receives: whole, or as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from fairlead.guard.answers import GuardedAnswer
from fairlead.guard.scheduler import Update
from fairlead.guard.server_asking import Asked
from fairlead.guard.server_errors import ApiError
from fairlead.guard.server_limits import error_body
from fairlead.guard.server_stream import Inbox

FINISH = {"stop": "stop", "length": "length", "retract": "stop", "abort": "content_filter"}


async def collect(inbox: Inbox, num: int) -> list[GuardedAnswer]:
    """The answers of all choices.

    Raises:
        ApiError: One of them failed.
    """
    found: dict[int, GuardedAnswer] = {}
    async for index, update in inbox.read(num):
        if update.error is not None:
            raise ApiError(500, update.error, "failed")
        if update.answer is not None:
            found[index] = update.answer
    return [found[index] for index in range(num)]


async def events(
    asked: Asked,
    opened: dict[str, Any],
    inbox: Inbox,
    *,
    usage: bool,
    done: Callable[[list[GuardedAnswer]], None],
) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream."""
    num, answers = len(asked.requests), []
    if asked.chat:
        for index in range(num):
            yield {**opened, "choices": [_delta(asked, index, "", role="assistant")]}
    async for index, update in inbox.read(num):
        if update.error is not None:
            yield error_body(update.error, "server_error", "failed")
            return
        text = "".join(piece.text for piece in update.pieces)
        if update.pieces or update.claims or update.interventions:
            yield {**opened, "choices": [{**_delta(asked, index, text), "fairlead": _part(asked, update)}]}
        if update.answer is not None:
            answers.append(update.answer)
            closing = {
                "finish_reason": FINISH[update.answer.finish],
                "fairlead": _about(asked, update.answer),
            }
            yield {**opened, "choices": [{**_delta(asked, index, ""), **closing}]}
    if usage:
        yield {**opened, "choices": [], "usage": usage_of(asked, answers)}
    done(answers)


def _delta(asked: Asked, index: int, text: str, *, role: str | None = None) -> dict[str, Any]:
    if not asked.chat:
        return {"index": index, "text": text, "finish_reason": None, "logprobs": None}
    delta = {"content": text} | ({"role": role} if role else {})
    return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}


def _part(asked: Asked, update: Update) -> dict[str, Any]:
    return {
        "tokens": [piece._asdict() for piece in update.pieces] if asked.tokens else None,
        "claims": [_claim(claim) for claim in update.claims],
        "interventions": [act.model_dump(mode="json") for act in update.interventions],
    }


def choice(asked: Asked, index: int, answer: GuardedAnswer) -> dict[str, Any]:
    """One choice of a response that is not streamed."""
    tokens = [
        {"text": text, "score": score, "given": given}
        for text, score, given in zip(answer.tokens, answer.scores, answer.given, strict=True)
    ]
    reading = {
        "tokens": tokens if asked.tokens else None,
        "claims": [_claim(claim) for claim in answer.claims],
        "interventions": [act.model_dump(mode="json") for act in answer.interventions],
        **_about(asked, answer),
    }
    body = (
        {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        if asked.chat
        else {"text": answer.text}
    )
    return {
        "index": index,
        **body,
        "finish_reason": FINISH[answer.finish],
        "logprobs": None,
        "fairlead": reading,
    }


def _about(asked: Asked, answer: GuardedAnswer) -> dict[str, Any]:
    return {
        "policy": answer.policy,
        "threshold": answer.threshold,
        "finish": answer.finish,
        "seed": asked.seed,
        "rivals": list(answer.rivals),
    }


def _claim(claim: Any) -> dict[str, Any]:
    return {"start": claim.start, "end": claim.end, "text": claim.text, "score": claim.score}


def usage_of(asked: Asked, answers: list[GuardedAnswer]) -> dict[str, int]:
    """Tokens read and written."""
    prompt = sum(len(request.ids) for request in asked.requests)
    written = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
