"""Fitting a head by gradient descent: AdamW over shuffled spans, step size falling linearly."""

from __future__ import annotations

import torch

from fairlead.probes.head import Head, SpanProbeConfig, Spans, pad_spans


def descend(head: Head, spans: Spans, config: SpanProbeConfig) -> None:
    """Fit the parameters of a head (in place), whose standardisation is set.

    Args:
        head: Initialised by its kind.
        spans: Of the fit.
        config: `epochs`, `lr`, `weight_decay`, `batch_spans`, `seed`.
    """
    generator = torch.Generator().manual_seed(config.seed)
    labels = spans.labels.float()
    decayed = [p for p in head.parameters() if p.dim() > 1]
    plain = [p for p in head.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.lr,
    )
    total = config.epochs * -(-len(labels) // config.batch_spans)
    step = 0
    for _ in range(config.epochs):
        for places in torch.randperm(len(labels), generator=generator).split(config.batch_spans):
            features, mask = pad_spans([spans.features[place] for place in places.tolist()])
            with torch.no_grad():
                scaled = head.scaled_spans(features)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * max(0.02, 1 - step / total)
            loss = head.loss(scaled, mask, labels[places], step / total)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
