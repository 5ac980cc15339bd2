"""Predicted against measured: the menu's uptake beside the change of each concept in the model's own answers.

measured = mean activation of the concept over the response tokens of the trained model's answers, read in the trained model, minus
the same for the start model; on prompts that were not trained on. The two are compared by rank (Spearman).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fairlead.core.records import Concept, Menu, Plan
from fairlead.core.results import Prediction
from fairlead.core.stats import spearman
from fairlead.data import Message, Row, encode, iter_batches
from fairlead.data.suite import Prompt

if TYPE_CHECKING:
    from fairlead.dictionaries import Dictionary
    from fairlead.models import Model


class Predicted(NamedTuple):
    """Lines, and rank correlations with what was measured; None where there are too few concepts or was no rehearsal."""

    lines: tuple[Prediction, ...]
    rank: float | None
    rehearsal_rank: float | None


def measure_predictions(
    trained: tuple[Model, Mapping[Prompt, str]],
    start: tuple[Model, Mapping[Prompt, str]],
    menu: Menu,
    dictionary: Dictionary,
    prompts: Sequence[Prompt],
    *,
    plan: Plan | None = None,
) -> Predicted:
    """Compare the menu with what became of its concepts.

    Args:
        trained: The trained model and its answers by prompt.
        start: The start model and its answers by prompt.
        menu: The preview.
        dictionary: The menu's dictionary.
        prompts: Prompts answered by both.
        plan: For the verdicts.

    Returns:
        One line per concept of the menu, and the rank correlations of uptake and rehearsal with what was measured.
    """
    concepts = [line.concept for line in menu.lines]
    used = [p for p in prompts if trained[1].get(p, "").strip() and start[1].get(p, "").strip()]
    if not concepts or not used:
        return Predicted((), None, None)
    after = concept_means(trained[0], dictionary, concepts, used, trained[1])
    before = concept_means(start[0], dictionary, concepts, used, start[1])
    verdicts = {decision.concept: decision.verdict for decision in plan.decisions} if plan else {}
    lines = tuple(
        Prediction(
            concept=line.concept.id,
            label=line.concept.label,
            predicted=line.uptake,
            rehearsed=line.rehearsed,
            measured=float(change),
            verdict=verdicts.get(line.concept.id, "ignore"),
        )
        for line, change in zip(menu.lines, (after - before).tolist(), strict=True)
    )
    tried = [line for line in lines if line.rehearsed is not None]
    return Predicted(
        lines,
        _rank([line.predicted for line in lines], lines),
        _rank([line.rehearsed for line in tried if line.rehearsed is not None], tried) if tried else None,
    )


def _rank(predicted: Sequence[float], lines: Sequence[Prediction]) -> float | None:
    rank = spearman(predicted, [line.measured for line in lines])
    return None if rank != rank else rank


@torch.no_grad()
def concept_means(
    model: Model,
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    prompts: Sequence[Prompt],
    answers: Mapping[Prompt, str],
) -> Tensor:
    """Mean activation per response token of each concept (sum over its latents), `[concept]`."""
    rows = []
    for prompt in prompts:
        if isinstance(prompt, str) and not _is_chat(model):
            rows.append(Row(text=prompt + answers[prompt]))
        else:
            before = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
            rows.append(Row(messages=(*before, Message("assistant", answers[prompt]))))
    encoded = encode(rows, model.tokenizer, max_length=model.max_length, on_long="truncate")
    latents = torch.tensor([latent for concept in concepts for latent in concept.latents])
    group = torch.tensor([place for place, concept in enumerate(concepts) for _ in concept.latents])
    sums, count = torch.zeros(len(concepts), dtype=torch.float64), 0
    for batch in iter_batches(encoded, batch_size=64, pad_id=model.pad_id):
        hidden = model.capture(batch, [dictionary.site])[str(dictionary.site)]
        acts = dictionary.encode_latents(hidden[batch.loss_mask.to(hidden.device)], latents)
        sums.index_add_(0, group, acts.double().sum(0).cpu())
        count += batch.num_loss_tokens
    return sums / max(count, 1)


def _is_chat(model: Model) -> bool:
    from fairlead.data import has_chat_template

    return has_chat_template(model.tokenizer)
