"""Probes find a planted direction, are scored on what they were not fitted on, and know their model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fairlead.core.errors import ConfigError, ModelError, SiteError
from fairlead.core.nouns import Readout
from fairlead.probes import fit_probe, load_probe

D = 24


def planted(
    num: int = 200, shift: float = 2.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(D, generator=generator), dim=0)
    scale = torch.logspace(-1, 1, D)
    noise = torch.randn(2 * num, D, generator=generator) * scale
    return noise[:num] + shift * scale * direction, noise[num:], direction


@pytest.mark.parametrize("method", ["logistic", "mean_difference"])
def test_a_planted_difference_is_found_and_labels_at_random_are_not(method):
    positive, negative, _ = planted()
    probe = fit_probe(positive, negative, site="layers.1.resid_post", method=method)
    placebo = fit_probe(
        torch.cat([positive[::2], negative[::2]]),
        torch.cat([positive[1::2], negative[1::2]]),
        site="embed",
        method=method,
    )
    assert probe.auroc > 0.8 and 0.35 < placebo.auroc < 0.65, (probe.auroc, placebo.auroc)
    assert isinstance(probe, Readout)


def test_the_logistic_probe_is_scikit_learns(monkeypatch):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    positive, negative, _ = planted()
    x = torch.cat([positive, negative]).numpy()
    y = [1] * len(positive) + [0] * len(negative)
    scaler = StandardScaler().fit(x)
    oracle = LogisticRegression(max_iter=2000, class_weight="balanced").fit(scaler.transform(x), y)
    probe = fit_probe(positive, negative, site="embed", heldout=0.0)
    expected = torch.tensor(oracle.decision_function(scaler.transform(x)), dtype=torch.float32)
    assert torch.allclose(probe(torch.tensor(x)), expected, atol=1e-2)


def test_the_score_is_on_held_out_activations():
    generator = torch.Generator().manual_seed(1)
    positive, negative = torch.randn(20, 200, generator=generator), torch.randn(20, 200, generator=generator)
    probe = fit_probe(positive, negative, site="embed")
    assert probe.score(positive, negative) == 1.0, "200 dimensions separate 40 points"
    assert probe.auroc < 0.9, "what was fitted must not be what is scored"


def test_a_probe_comes_back_from_disk(tmp_path):
    positive, negative, _ = planted()
    probe = fit_probe(positive, negative, site="layers.1.resid_post", name="pirate", model_fingerprint="abc")
    back = load_probe(probe.save(tmp_path / "p"), model=None)
    assert torch.equal(back(positive), probe(positive)) and back.site == probe.site
    assert (back.auroc, back.model_fingerprint, back.direction.name) == (probe.auroc, "abc", "pirate")
    (tmp_path / "p" / "probe.json").write_text("{")
    with pytest.raises(ConfigError, match="broken probe"):
        load_probe(tmp_path / "p", model=None)
    with pytest.raises(ConfigError, match="no such file"):
        load_probe(tmp_path / "missing", model=None)


def test_another_model_or_site_is_refused():
    positive, negative, _ = planted()
    probe = fit_probe(positive, negative, site="layers.1.resid_post", model_fingerprint="abc")
    probe.check(SimpleNamespace(fingerprint="abc", name="m", d_model=D), "layers.1.resid_post")
    with pytest.raises(ModelError, match="fitted on another model"):
        probe.check(SimpleNamespace(fingerprint="xyz", name="m", d_model=D))
    with pytest.raises(ModelError, match="reads width 24"):
        probe.check(SimpleNamespace(fingerprint="abc", name="m", d_model=8))
    with pytest.raises(SiteError, match="not embed"):
        probe.check(SimpleNamespace(fingerprint="abc", name="m", d_model=D), "embed")


def test_a_saved_probe_is_read_with_its_own_model_alone(tmp_path):
    positive, negative, _ = planted()
    own, other = (SimpleNamespace(fingerprint=f, name="m", d_model=D) for f in ("abc", "xyz"))
    known = fit_probe(positive, negative, site="embed", model_fingerprint="abc")
    unknown = fit_probe(positive, negative, site="embed")
    assert known.data_sha256 == unknown.data_sha256 != fit_probe(negative, positive, site="embed").data_sha256
    folder, nameless = known.save(tmp_path / "known"), unknown.save(tmp_path / "unknown")
    assert load_probe(folder, model=own).data_sha256 == known.data_sha256
    with pytest.raises(ModelError, match="fitted on another model"):
        load_probe(folder, model=other)
    with pytest.raises(ModelError, match="does not say which model"):
        load_probe(nameless, model=own)
    assert load_probe(folder, model=other, any_model=True).model_fingerprint == "abc"
    assert load_probe(nameless, model=own, any_model=True).model_fingerprint == ""


def test_unusable_activations_are_named():
    good = torch.randn(4, 3)
    with pytest.raises(ConfigError, match="at least 2"):
        fit_probe(good[:1], good, site="embed")
    with pytest.raises(ConfigError, match="not finite"):
        fit_probe(good * float("nan"), good, site="embed")
    with pytest.raises(ConfigError, match="one width"):
        fit_probe(good, torch.randn(4, 5), site="embed")
