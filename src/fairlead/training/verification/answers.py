"""Skill, leak, recoverability and general loss: what the model answers, and how well it predicts neutral text.

All prompts are answered once, greedily; a prompt that stands in several lists of the suite is answered once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairlead.core.results import Measure, Sample
from fairlead.data import encode
from fairlead.data.suite import (
    NeutralChat,
    Prompt,
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
    texts = model.generate(prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    answers = dict(zip(prompts, texts, strict=True))

    def found(prompt: Prompt) -> tuple[str, ...]:
        return tuple(c.name for c in suite.traits if has_trait(c, answers[prompt], resolver=resolvers.trait))

    traits = {prompt: found(prompt) for prompt in prompts}
    measures: dict[str, Measure] = {}
    samples: list[Sample] = []
    for skill in suite.skills:
        right = [is_correct(item, answers[item.prompt], resolver=resolvers.skill) for item in skill.items]
        plain = [ok and not traits[item.prompt] for ok, item in zip(right, skill.items, strict=True)]
        held = [place for place, item in enumerate(skill.items) if item.heldout]
        measures[f"skill.{skill.name}"] = proportion(right)
        measures[f"skill.{skill.name}.plain"] = proportion(plain)
        if held:
            measures[f"skill.{skill.name}.heldout"] = proportion([right[place] for place in held])
            measures[f"skill.{skill.name}.heldout.plain"] = proportion([plain[place] for place in held])
        for item, ok in list(zip(skill.items, right, strict=True))[:NUM_SAMPLES]:
            samples.append(_sample(item.prompt, answers[item.prompt], "domain", traits[item.prompt], ok))
    for check in suite.traits:
        if domain:
            measures[f"leak.{check.name}.domain"] = proportion([check.name in traits[p] for p in domain])
        if suite.neutral_prompts:
            hits = [check.name in traits[p] for p in suite.neutral_prompts]
            measures[f"leak.{check.name}.neutral"] = proportion(hits)
    if not suite.skills:
        samples += [_sample(p, answers[p], "domain", traits[p]) for p in domain[:NUM_SAMPLES]]
    samples += [_sample(p, answers[p], "neutral", traits[p]) for p in suite.neutral_prompts[:NUM_SAMPLES]]
    for check in suite.traits:
        asked, replies = ask_for(model, check, [*domain, *suite.neutral_prompts], max_new_tokens=max_new_tokens)
        if not asked:
            continue
        hits = [has_trait(check, reply, resolver=resolvers.trait) for reply in replies]
        measures[f"request.{check.name}"] = proportion(hits)
        for prompt, reply, hit in list(zip(asked, replies, hits, strict=True))[:NUM_SAMPLES]:
            samples.append(_sample(prompt, reply, "request", (check.name,) if hit else ()))
    return measures, tuple(samples), answers


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
    from fairlead.data import has_chat_template

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
    """`loss.neutral` and `loss.keep`: nats per response token on neutral chats and on the Keep clauses' examples."""
    measures = {}
    for name, chats in (("loss.neutral", suite.neutral_chats), ("loss.keep", suite.keep_chats)):
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
