"""LoRA probe (arXiv 2509.03531): low-rank adapters on the model make readable what a head alone cannot read.

1. The head is an `attention` probe of the unchanged model: the start, and what the adapters must beat.
2. Adapters and head are fitted together on the spans' cross-entropy plus `kl` times the divergence of the adapted model's next-token
   distribution from its own on the tokens of the response, so that it goes on talking as it did (encoders talk not: cross-entropy alone).
3. After each epoch the AUROC on the calibration part decides which state is kept; epoch 0 is the head without adapters.

The activations that such a probe reads are those of the adapted model: capture them inside `with probe.attached(model)`. The adapters
are hooks of our own (`fairlead.models.adapters`), not PEFT's modules: PEFT belongs to `fairlead.training`, and a probe must come off again
without a trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fairlead.core.claims import TokenSpan
from fairlead.core.progress import say
from fairlead.core.stats import auroc
from fairlead.data import collate
from fairlead.models.adapters import LowRank, adapted, make_adapters
from fairlead.models.lens import Lens
from fairlead.probes.encoding import EncodedAnswer, encode_for, locate
from fairlead.probes.examples import Example
from fairlead.probes.fitting import FittedProbe, fit_on, head_logits, split
from fairlead.probes.harvesting import Harvest, harvest
from fairlead.probes.head import SpanProbeConfig
from fairlead.probes.parts import part_of
from fairlead.probes.reading import Reading, gather_spans, make_reading

if TYPE_CHECKING:
    from fairlead.models import Model

BATCH_TEXTS = 32


def fit_lora(
    model: Model, examples: Sequence[Example], found: Harvest, *, name: str, config: SpanProbeConfig
) -> FittedProbe:
    """Fit adapters and head, from a harvest of the unchanged model."""
    reading = make_reading(model, config.sites or (), confidence=config.confidence)
    lens = reading.lens
    if lens is None and model.is_causal and config.kl:
        lens = Lens(model)  # not read by the probe, but what the divergence is measured with
    base = config.model_copy(update={"kind": "attention"})
    start = fit_on(found, examples, model=model, name=name, config=base)
    head = start.probe.head
    held = split(found, examples, base)["calibration"]
    spans = found.spans.subset(held)
    labels = spans.labels.numpy()
    logits = head_logits(head, spans)
    best_score = auroc(logits[labels], logits[~labels])
    best: tuple[dict[str, LowRank], dict[str, Tensor]] = ({}, _copy(head.state_dict()))
    adapters = make_adapters(model, rank=config.rank, seed=config.seed)
    train = [e for e in examples if part_of(e.group, base) == "fit"]
    held_texts = [e for e in examples if part_of(e.group, base) == "calibration"]
    parameters = [tensor for adapter in adapters.values() for tensor in adapter]
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "lr": config.lr / 10, "weight_decay": config.weight_decay},
            {"params": list(head.requires_grad_().parameters()), "lr": config.lr / 10, "weight_decay": 0.0},
        ]
    )
    generator = torch.Generator().manual_seed(config.seed)
    frozen = [p for p in model.hf.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for epoch in range(config.lora_epochs):
            for places in torch.randperm(len(train), generator=generator).split(BATCH_TEXTS):
                loss = _loss(
                    model,
                    head,
                    adapters,
                    reading,
                    lens,
                    [train[i] for i in places.tolist()],
                    config.kl,
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with adapted(model, adapters):
                again = harvest(model, held_texts, reading).spans
            logits = head_logits(head, again)
            score = auroc(logits[again.labels.numpy()], logits[~again.labels.numpy()])
            say(
                f"lora epoch {epoch + 1}: AUROC {score:.3f} on the calibration part (best so far {best_score:.3f})"
            )
            if score > best_score:
                best_score = score
                kept = {n: LowRank(*(t.detach().clone() for t in a)) for n, a in adapters.items()}
                best = (kept, _copy(head.state_dict()))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    chosen, state = best
    head.load_state_dict(state)
    head.requires_grad_(False)
    with adapted(model, chosen):
        final = harvest(model, examples, reading)
    fitted = fit_on(final, examples, model=model, name=name, config=config, head=head)
    details = {**fitted.probe.details, "adapted": bool(chosen), "auroc_without": start.probe.metrics["auroc"]}
    return fitted._replace(probe=replace(fitted.probe, adapters=chosen, details=details))


def _loss(
    model: Model,
    head: torch.nn.Module,
    adapters: dict[str, LowRank],
    reading: Reading,
    lens: Lens | None,
    examples: Sequence[Example],
    weight: float,
) -> Tensor:
    encoded = [encode_for(model, e.messages, e.response, source=e.id) for e in examples]
    batch = collate([e.encoded for e in encoded], pad_id=model.pad_id)
    with adapted(model, adapters):
        sites = (*reading.sites, lens.site) if lens is not None else reading.sites
        activations = model.capture(batch, tuple(dict.fromkeys(sites)), stop_early=False, grad=True)
    spans, labels = _spans(examples, encoded)
    features, mask = gather_spans(reading.features(activations), spans)
    loss = binary_cross_entropy_with_logits(head.span_logits(features, mask), labels.to(features))  # type: ignore[operator]
    if weight and lens is not None:
        response = batch.loss_mask.to(features.device)
        now = lens.logprobs(activations[str(lens.site)])[response]
        with torch.no_grad():
            own = model.capture(batch, [lens.site], stop_early=False)
            before = lens.logprobs(own[str(lens.site)])[response]
        loss = loss + weight * (before.exp() * (before - now)).sum(-1).mean()
    return loss


def _spans(examples: Sequence[Example], encoded: Sequence[EncodedAnswer]) -> tuple[list[TokenSpan], Tensor]:
    spans, labels = [], []
    for row, (example, code) in enumerate(zip(examples, encoded, strict=True)):
        for stretch in example.stretches:
            start, end = locate(code.offsets, stretch.start, stretch.end, shift=code.start)
            if end:
                spans.append(TokenSpan(row, start, end))
                labels.append(float(stretch.label))
    return spans, torch.tensor(labels)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}
