"""Matching, planted features and the quality record, each against a case whose answer is known."""

from __future__ import annotations

import itertools

import pytest
import torch

from fairlead.core.errors import DictionaryError
from fairlead.dictionaries import (
    Dictionary,
    DictionaryConfig,
    Transcoder,
    evaluate_dictionary,
    train_dictionary,
    train_transcoder,
)
from fairlead.dictionaries.evaluation import measure, pca_fvu, random_reconstruction_fvu
from fairlead.dictionaries.matching import match_rows, seed_stability
from fairlead.dictionaries.quality import density_histogram, measure_quality, planted_recovery
from fairlead.dictionaries.synthetic import Planted, PlantedConfig, measure_recovery

from .planting import unit_rows

CONFIG = DictionaryConfig(d_dict=64, k=4, num_tokens=4000, batch_tokens=50, buffer_tokens=200)


def test_the_matching_is_the_best_of_all_assignments():
    left, right = unit_rows(5, 4, 0), unit_rows(6, 4, 1)
    found = match_rows(left, right)
    best = max(
        sum(float(left[i] @ right[j]) for i, j in enumerate(order))
        for order in itertools.permutations(range(6), 5)
    )
    assert float(found.cosine.sum()) == pytest.approx(best, abs=1e-5)
    assert len(set(found.right.tolist())) == 5, "no row has two partners"


def test_stability_of_a_shuffled_copy_of_a_half_new_one_and_of_chance():
    rows = unit_rows(64, 48, 0)
    shuffled = 3 * rows[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    found = seed_stability(rows, shuffled)
    assert found["stable"] == 1.0 and found["mcc"] == pytest.approx(1.0, abs=1e-5)
    assert found["stable_random"] == 0.0
    half = torch.cat([shuffled[:32], unit_rows(32, 48, 2)])
    assert seed_stability(rows, half)["stable"] == pytest.approx(0.5, abs=0.05)
    assert seed_stability(rows, -rows)["stable"] < 0.1, "an opposite row is another feature"


@pytest.mark.parametrize("variant", ["independent", "correlated", "hierarchical"])
def test_the_known_dictionary_recovers_itself_and_a_random_one_does_not(variant):
    planted = Planted(PlantedConfig(d_model=64, num_features=48, active=3, variant=variant, noise=0.0))
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    inverse = torch.linalg.pinv(
        planted.features
    )  # [d, F]: the exact encoder, there being fewer features than dimensions
    weights = {
        "W_enc": inverse[:, order],
        "W_dec": planted.features[order],
        "b_enc": torch.zeros(48),
        "b_dec": torch.zeros(64),
        "threshold": torch.full((48,), 0.5),
    }
    found = measure_recovery(planted, Dictionary(weights, site="embed"))
    assert found.mcc == pytest.approx(1, abs=1e-4) and found.found == 1
    assert found.precision > 0.999 and found.recall > 0.999 and found.fvu < 1e-6
    other = unit_rows(48, 64, 9)
    chance = measure_recovery(
        planted, Dictionary({**weights, "W_enc": other.T, "W_dec": other}, site="embed")
    )
    assert chance.found == 0 and chance.mcc < 0.5 and chance.precision < 0.5


def test_variants_are_what_they_say():
    def on(variant: str) -> torch.Tensor:
        return Planted(PlantedConfig(num_features=64, active=4, variant=variant)).codes(40_000, seed=1) > 0

    alone, groups, nested = on("independent"), on("correlated"), on("hierarchical")
    rates = Planted(PlantedConfig(num_features=64, active=4)).rates
    torch.testing.assert_close(alone.float().mean(0), rates, atol=0.01, rtol=0)
    torch.testing.assert_close(groups.float().mean(0), rates, atol=0.01, rtol=0)

    def lift(codes: torch.Tensor, a: int, b: int) -> float:
        """How much more often two features are on together than their rates say."""
        both = (codes[:, a] & codes[:, b]).float().mean()
        return float(both / (codes[:, a].float().mean() * codes[:, b].float().mean()))

    assert lift(alone, 40, 41) == pytest.approx(1, abs=0.4)
    assert lift(groups, 40, 41) > 2 and lift(groups, 40, 47) == pytest.approx(1, abs=0.5)
    parents = nested[:, ::4].repeat_interleave(4, dim=1)
    assert not (nested & ~parents).any(), "a child is on only where its parent is"
    assert nested[:, 1::4].any()


def test_a_trainer_of_the_same_seed_does_not_start_from_the_planted_rows():
    planted = Planted(PlantedConfig(seed=3))
    start = torch.randn(256, 64, generator=torch.Generator().manual_seed(3))
    assert match_rows(planted.features, start).cosine.max() < 0.9


def test_pca_leaves_the_variance_of_the_components_that_it_lacks():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=generator) * torch.tensor([5.0, 3, 2, 1, 0.5, 0.2, 0.1, 0.1])
    centred = x - x.mean(0)
    _, _, v = torch.linalg.svd(centred, full_matrices=False)
    left = centred - centred @ v[:3].T @ v[:3]
    assert pca_fvu(x, k=3) == pytest.approx(float(left.square().sum() / centred.square().sum()), rel=1e-4)
    assert pca_fvu(x, k=8) == pytest.approx(0, abs=1e-6)


def test_densities_and_their_histogram():
    found = density_histogram(torch.tensor([0.0, 0.0, 1.0, 0.5, 0.011, 0.0101]))
    assert found.never == 2 and sum(found.counts) == 4 and len(found.edges) == len(found.counts) + 1
    assert found.counts[0] == 2 and found.edges[0] == pytest.approx(-2) and found.counts[-1] == 1 + 0
    assert found.edges[-1] == 0
    assert density_histogram(torch.zeros(3)).never == 3


def test_the_record_holds_everything_side_by_side(model, other_model, rows):
    first = train_dictionary(model, rows, config=CONFIG)
    second = train_dictionary(model, rows, config=CONFIG.model_copy(update={"seed": 1}))
    found = measure_quality(model, first, rows, against=second)
    plain = evaluate_dictionary(model, first, rows)
    assert found.metrics == pytest.approx(plain)
    assert found.metrics["fvu"] < found.metrics["fvu_random"], "it beats the random decoder"
    assert found.density.never + sum(found.density.counts) == 64
    assert found.density.never / 64 == pytest.approx(found.metrics["dead"])
    assert 0 <= found.stability["stable_random"] <= 0.05 <= found.stability["stable"] < 1
    own = measure_quality(model, first, rows, against=first).stability
    assert own["stable"] == 1
    with pytest.raises(DictionaryError, match="fingerprint"):
        measure_quality(other_model, first, rows)


def test_a_transcoder_is_measured_where_it_writes(model, rows):
    """A perfect one (weights that pass the site on) recovers all of the loss; the trained one sits between it and the mean."""
    eye = torch.eye(32)
    weights = {
        "W_enc": torch.cat([eye, -eye], 1),
        "W_dec": torch.cat([eye, -eye]),
        "b_enc": torch.zeros(64),
        "b_dec": torch.zeros(32),
        "threshold": torch.zeros(64),
    }
    name = {"site": "layers.1.mlp_out", "to_site": "layers.1.mlp_out", "model_fingerprint": model.fingerprint}
    perfect = evaluate_dictionary(model, Transcoder(weights, **name), rows)
    assert perfect["fvu"] < 1e-6 and perfect["ce_recovered"] == pytest.approx(1, abs=1e-4)
    made = train_transcoder(model, rows, site="layers.1.mlp_in", to_site="layers.1.mlp_out", config=CONFIG)
    found = evaluate_dictionary(model, made, rows)
    assert found["ce_model"] == pytest.approx(perfect["ce_model"])
    assert 0 < found["fvu"] < 1 and found["ce_dictionary"] != pytest.approx(found["ce_mean"], abs=1e-4)


def test_planted_recovery_of_a_kind_beats_chance():
    found = planted_recovery({"kind": "batch_topk"}, 40_000)
    assert set(found) == {"independent", "correlated", "hierarchical"}
    planted = Planted(PlantedConfig())
    chance = match_rows(planted.features, unit_rows(256, 64, 4)).cosine.mean()
    assert found["independent"]["mcc"] > float(chance) + 0.05
    for kind in ({}, {"kind": "transcoder"}):
        with pytest.raises(DictionaryError, match="--planted"):
            planted_recovery(kind, 1000)


def test_measuring_in_pieces_gives_the_whole(model):
    weights = {
        "W_enc": unit_rows(24, 8, 0).T,
        "W_dec": unit_rows(24, 8, 0),
        "b_enc": torch.zeros(24),
        "b_dec": torch.ones(8),
        "threshold": torch.full((24,), 0.2),
    }
    found = Dictionary(weights, site="embed")
    x = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0))
    pieces = measure(found, x)
    codes = found.encode(x)
    assert pieces.fvu == pytest.approx(
        float((found.decode(codes) - x).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-4
    )
    torch.testing.assert_close(pieces.density, (codes != 0).float().mean(0))
    assert random_reconstruction_fvu(x, d_dict=24, k=2) < 1
