"""Skill, leak, recoverability and general loss: what the model answers, and how well it predicts neutral text.

A prompt that stands in several lists of the suite is answered once: greedily, or in as many draws as the suite's sampling says, which then
count one by one. Models of plain text continue their prompts; what asks such a model for a trait is an opening in its style.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairlead.core.results import Measure, Sample
from fairlead.data import encode, has_chat_template
from fairlead.data.suite import (
    NeutralChat,
    Prompt,
    Sampling,
    SkillResolver,
    Suite,
    TraitCheck,
    TraitResolver,
    has_trait,
    is_correct,
)
from fairlead.training.verification.measures import mean, proportion

if TYPE_CHECKING:
    from fairlead.models import Model

NUM_REQUEST = 96  # prompts on which the trait is asked for
NUM_SAMPLES = 6  # answers kept per group


@dataclass(frozen=True)
class Resolvers:
    """Ground truth of a model organism, for suites whose checks need it."""

    skill: SkillResolver | None = None
    trait: TraitResolver | None = None


def measure_answers(
    model: Model,
    suite: Suite,
    *,
    resolvers: Resolvers = Resolvers(),
    max_new_tokens: int = 32,
    batch_size: int = 128,
) -> tuple[dict[str, Measure], tuple[Sample, ...], dict[Prompt, str]]:
    """Generate once and count.

    Args:
        model: The model to measure.
        suite: What to ask and how to check.
        resolvers: For checks of kind "organism".
        max_new_tokens: Longest answer.
        batch_size: Prompts at a time.

    Returns:
        Measures (`skill.*`, `leak.*`, `request.*`), some answers, and all answers by prompt.
    """
    prompts = [item.prompt for skill in suite.skills for item in skill.items]
    domain = suite.domain_prompts or tuple(prompts)
    prompts = list(dict.fromkeys([*prompts, *domain, *suite.neutral_prompts]))
    max_new_tokens = suite.sampling.max_new_tokens or max_new_tokens
    draws = _answer(model, suite.sampling, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    answers = {prompt: texts[0] for prompt, texts in draws.items()}

    def found(answer: str) -> tuple[str, ...]:
        return tuple(c.name for c in suite.traits if has_trait(c, answer, resolver=resolvers.trait))

    shown = {prompt: [found(text) for text in texts] for prompt, texts in draws.items()}
    traits = {prompt: sets[0] for prompt, sets in shown.items()}
    measures: dict[str, Measure] = {}
    samples: list[Sample] = []
    for skill in suite.skills:
        tries = [
            (item, *pair)
            for item in skill.items
            for pair in zip(draws[item.prompt], shown[item.prompt], strict=True)
        ]
        right = [is_correct(item, text, resolver=resolvers.skill) for item, text, _ in tries]
        plain = [ok and not found_here for ok, (_, _, found_here) in zip(right, tries, strict=True)]
        held = [place for place, (item, _, _) in enumerate(tries) if item.heldout]
        measures[f"skill.{skill.name}"] = proportion(right)
        measures[f"skill.{skill.name}.plain"] = proportion(plain)
        if held:
            measures[f"skill.{skill.name}.heldout"] = proportion([right[place] for place in held])
            measures[f"skill.{skill.name}.heldout.plain"] = proportion([plain[place] for place in held])
        first = right[:: suite.sampling.draws]
        for item, ok in list(zip(skill.items, first, strict=True))[:NUM_SAMPLES]:
            samples.append(_sample(item.prompt, answers[item.prompt], "domain", traits[item.prompt], ok))
    for check in suite.traits:
        if domain:
            measures[f"leak.{check.name}.domain"] = proportion(
                [check.name in s for p in domain for s in shown[p]]
            )
        if suite.neutral_prompts:
            hits = [check.name in s for p in suite.neutral_prompts for s in shown[p]]
            measures[f"leak.{check.name}.neutral"] = proportion(hits)
    if not suite.skills:
        samples += [_sample(p, answers[p], "domain", traits[p]) for p in domain[:NUM_SAMPLES]]
    samples += [_sample(p, answers[p], "neutral", traits[p]) for p in suite.neutral_prompts[:NUM_SAMPLES]]
    for check in suite.traits if not has_chat_template(model.tokenizer) else ():
        if not check.openings:
            continue
        told = _answer(
            model, suite.sampling, check.openings, max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        answers |= {prompt: texts[0] for prompt, texts in told.items()}
        measures[f"elicited.{check.name}"] = proportion(
            [check.name in found(t) for texts in told.values() for t in texts]
        )
        samples += [
            _sample(p, texts[0], "request", found(texts[0])) for p, texts in list(told.items())[:NUM_SAMPLES]
        ]
    for check in suite.traits:
        asked, replies = ask_for(
            model, check, [*domain, *suite.neutral_prompts], max_new_tokens=max_new_tokens
        )
        if not asked:
            continue
        hits = [has_trait(check, reply, resolver=resolvers.trait) for reply in replies]
        measures[f"request.{check.name}"] = proportion(hits)
        for prompt, reply, hit in list(zip(asked, replies, hits, strict=True))[:NUM_SAMPLES]:
            samples.append(_sample(prompt, reply, "request", (check.name,) if hit else ()))
    return measures, tuple(samples), answers


def _answer(
    model: Model, sampling: Sampling, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_size: int
) -> dict[Prompt, list[str]]:
    """All draws for each prompt."""
    prompts, draws = list(dict.fromkeys(prompts)), sampling.draws
    texts = model.generate(
        [prompt for prompt in prompts for _ in range(draws)],
        max_new_tokens=max_new_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed,
        batch_size=batch_size,
    )
    return {prompt: texts[place * draws : (place + 1) * draws] for place, prompt in enumerate(prompts)}


def ask_for(
    model: Model,
    check: TraitCheck,
    prompts: Sequence[Prompt],
    *,
    heldout: bool = True,
    num: int = NUM_REQUEST,
    max_new_tokens: int = 32,
) -> tuple[list[Prompt], list[str]]:
    """Answers to prompts under system prompts that ask for a trait, the requests taken in turn.

    Args:
        model: Who answers.
        check: Its requests (the held-out ones, where there are any and `heldout`).
        prompts: Of which `num` evenly spaced ones are used.
        heldout: Use requests that no training uses.
        num: How many.
        max_new_tokens: Longest answer.

    Returns:
        The prompts used and the answers; both empty where the check has no request or the model takes no chat.
    """
    requests = (check.requests_heldout if heldout else ()) or check.requests or check.requests_heldout
    if not requests or not prompts or not has_chat_template(model.tokenizer):
        return [], []
    step = max(1, len(prompts) // num)
    used = list(prompts)[::step][:num]
    replies = [""] * len(used)
    for which, request in enumerate(requests):
        places = list(range(which, len(used), len(requests)))
        texts = model.generate(
            [used[place] for place in places], system=request, max_new_tokens=max_new_tokens, batch_size=128
        )
        for place, text in zip(places, texts, strict=True):
            replies[place] = text
    return used, replies


def measure_losses(model: Model, suite: Suite) -> dict[str, Measure]:
    """Nats per response token: `loss.neutral`, `loss.keep` (the Keep clauses' examples), `loss.TRAIT` (held-out texts that show it)."""
    measures = {}
    avoided = [(f"loss.{check.name}", check.texts) for check in suite.traits]
    for name, chats in (("loss.neutral", suite.neutral_chats), ("loss.keep", suite.keep_chats), *avoided):
        if chats:
            measures[name] = mean_loss(model, chats)
    return measures


def mean_loss(model: Model, chats: Sequence[NeutralChat]) -> Measure:
    """Nats per response token, with a bootstrap interval over chats."""
    encoded = encode(
        [chat.row for chat in chats], model.tokenizer, max_length=model.max_length, on_long="truncate"
    )
    scores = model.logprobs(encoded, batch_size=64)
    sums, counts = [], []
    for item, values in zip(encoded, scores, strict=True):
        wanted = [place for place, flag in enumerate(item.loss_mask) if flag]
        sums.append(-float(values[wanted].sum()))
        counts.append(float(len(wanted)))
    return mean(sums, weights=counts)


def prompt_text(prompt: Prompt) -> str:
    """A prompt as text for tables."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{m.role}: {m.content}" for m in prompt)


def _sample(
    prompt: Prompt, answer: str, group: str, traits: tuple[str, ...], correct: bool | None = None
) -> Sample:
    return Sample(prompt=prompt_text(prompt), answer=answer, group=group, correct=correct, traits=traits)
