"""Trait directions from a spec's examples: difference of means at a site (arXiv 2308.10248, 2312.06681), and random ones.

The direction of a clause at a site is the mean activation at the response tokens of its examples minus that of their counterparts.
Counterparts are, in this order: the examples' own `instead`, the start model's answers to the examples' prompts, neutral rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from fairlead.core.errors import TrainingError
from fairlead.core.nouns import Direction
from fairlead.core.records import Clause
from fairlead.core.site import Site
from fairlead.data import Encoded, Message, Row, iter_batches
from fairlead.probes import fit_probe, pool_answers
from fairlead.training.setup import Setup, clause_rows

if TYPE_CHECKING:
    from fairlead.models import Model


def clause_directions(setup: Setup, clause: Clause, sites: Sequence[Site]) -> dict[Site, Direction]:
    """Difference of means of a clause's examples at several sites.

    Raises:
        TrainingError: The clause has no example.
    """
    shown, instead, how = contrast_rows(setup, clause)
    positive = mean_activations(setup.model, setup.encode(shown), sites)
    negative = mean_activations(setup.model, setup.encode(instead), sites)
    about = {"method": "mean_difference", "clause": clause.id, "examples": len(shown), "counterparts": how}
    return {site: Direction(site, positive[site] - negative[site], clause.text, about) for site in sites}


def readout_directions(setup: Setup, clause: Clause, sites: Sequence[Site]) -> dict[Site, Direction]:
    """Directions of probes fitted to tell a clause's examples from their counterparts, site by site.

    A logistic probe on the answers' mean activations weighs a feature by how reliably it tells the two apart, the difference of means
    by how far it moves. Each is as long as the difference of means along it, so that coefficients mean the same for both.

    Raises:
        TrainingError: The clause has no example.
    """
    shown, instead, how = contrast_rows(setup, clause)
    about = {"method": "probe", "clause": clause.id, "examples": len(shown), "counterparts": how}
    made = {}
    for site in sites:
        positive = pool_answers(setup.model, setup.encode(shown), site)
        negative = pool_answers(setup.model, setup.encode(instead), site)
        probe = fit_probe(positive, negative, site=site, heldout=0.0, seed=setup.config.seed)
        unit = probe.direction.unit()
        vector = unit * (unit @ (positive.mean(0) - negative.mean(0)))
        made[site] = Direction(site, vector, clause.text, about)
    return made


def contrast_rows(setup: Setup, clause: Clause) -> tuple[list[Row], list[Row], str]:
    """A clause's examples, their counterparts, and where these come from.

    Raises:
        TrainingError: The clause has no example.
    """
    shown, instead = clause_rows(clause, chat=setup.is_chat)
    if not shown:
        raise TrainingError(
            f"clause {clause.id} ('{clause.text}') has no example to take a direction from. Next: add quoted examples to it."
        )
    if instead:
        return shown, instead, "instead"
    return (shown, *_counterparts(setup, clause, shown))


@torch.no_grad()
def mean_activations(
    model: Model, encoded: Sequence[Encoded], sites: Sequence[Site]
) -> dict[Site, Float[Tensor, " d"]]:
    """Mean activation over all response tokens at each site, float32."""
    sums = {site: torch.zeros(model.d_model) for site in sites}
    count = 0
    for batch in iter_batches(encoded, batch_size=32, pad_id=model.pad_id):
        found = model.capture(batch, sites)
        for site in sites:
            hidden = found[str(site)]
            sums[site] += hidden[batch.loss_mask.to(hidden.device)].float().sum(0).cpu()
        count += batch.num_loss_tokens
    return {site: value / max(count, 1) for site, value in sums.items()}


def residual_sites(model: Model) -> list[Site]:
    """The residual stream after every layer."""
    return [Site("resid_post", layer) for layer in range(model.num_layers)]


def increments(directions: dict[Site, Direction]) -> dict[Site, Direction]:
    """What each layer adds: v_l - v_(l-1), so that adding all of them gives v_l at every layer (not a multiple of it)."""
    made, before = {}, None
    for site in sorted(directions, key=lambda s: s.layer or 0):
        here = directions[site]
        vector = here.vector if before is None else here.vector - before
        made[site] = Direction(site, vector, here.name, {**here.provenance, "form": "increment"})
        before = here.vector
    return made


def random_like(directions: dict[Site, Direction], *, seed: int) -> dict[Site, Direction]:
    """Random directions of equal norm, site by site: the placebo."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for site, direction in directions.items():
        noise = torch.randn(direction.vector.shape, generator=generator)
        vector = noise / noise.norm() * direction.vector.norm()
        made[site] = Direction(site, vector, "random", {"method": "random", "seed": seed})
    return made


def choose_sites(model: Model, layers: str | int) -> list[Site]:
    """Residual sites of "all" layers, of the "middle" one, or of one layer by number."""
    if layers == "all":
        return residual_sites(model)
    layer = model.default_site().layer if layers == "middle" else int(layers)
    if layer is None or not -model.num_layers <= layer < model.num_layers:
        raise TrainingError(f"layer {layers} does not exist in {model.name} ({model.num_layers} layers).")
    return [Site("resid_post", layer % model.num_layers)]


def trait_bases(
    setup: Setup, clause: str | None, *, layers: str | int, source: str, choose: Callable[[Tensor], Tensor]
) -> dict[Site, Float[Tensor, "rank d"]]:
    """Orthonormal bases of the avoided clauses' directions, site by site.

    Args:
        setup: The training's setup.
        clause: The clause, or None for all that are avoided.
        layers: "all", "middle" or a layer's number (with directions from examples).
        source: "examples" (difference of means) or "dictionary" (decoder rows of the avoided concepts, at its site).
        choose: What to span in place of the real directions `[direction, d]` (a placebo's).

    Raises:
        TrainingError: There is nothing to take directions from.
    """
    vectors: dict[Site, list[Tensor]] = {}
    if source == "dictionary":
        if setup.dictionary is None or setup.plan is None:
            raise TrainingError(
                "directions from a dictionary need a plan that names one. Next: use source='examples'."
            )
        wanted = None if clause is None else {found.id for found in setup.avoided(clause)}
        avoided = {d.concept for d in setup.plan.avoided() if wanted is None or d.clause in wanted}
        latents = [i for c in setup.plan.concepts if c.id in avoided for i in c.latents]
        if not latents:
            what = "" if clause is None else f" for clause {clause}"
            raise TrainingError(f"the plan avoids no concept{what}. Next: use source='examples'.")
        vectors[setup.dictionary.site] = list(setup.dictionary.decoder[latents].float())
    else:
        for avoided_clause in setup.avoided(clause):
            found = clause_directions(setup, avoided_clause, choose_sites(setup.model, layers))
            for site, direction in found.items():
                vectors.setdefault(site, []).append(direction.vector)
    return {site: orthonormal(choose(torch.stack(rows))) for site, rows in vectors.items()}


def orthonormal(vectors: Tensor) -> Tensor:
    """Orthonormal basis `[rank, d]` of the span of rows `[direction, d]`."""
    _, values, basis = torch.linalg.svd(vectors.double(), full_matrices=False)
    return basis[values > 1e-6 * values.max().clamp_min(1e-30)].float()


def random_rows(vectors: Tensor, seed: int) -> Tensor:
    """Random directions in place of rows `[direction, d]`: the placebo of a projection."""
    return torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed))


def _counterparts(setup: Setup, clause: Clause, shown: list[Row]) -> tuple[list[Row], str]:
    prompts = [row.prompt_messages for row in shown if row.messages is not None]
    if prompts and any(example.prompt for example in clause.examples):
        answers = setup.model.generate(prompts, max_new_tokens=48)
        rows = [
            Row(messages=(*prompt, Message("assistant", answer)))
            for prompt, answer in zip(prompts, answers, strict=True)
            if answer.strip()
        ]
        if rows:
            return rows, "the start model's own answers"
    rows = setup.neutral_rows(64)
    return rows, "neutral rows"
