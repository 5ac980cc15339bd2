"""Transcoders and crosscoders: planted maps and planted exclusive features, files, resumption, and a false exclusive unmasked."""

from __future__ import annotations

import pytest
import torch

import fairlead.dictionaries.training as training
from fairlead.activations import ActivationStore
from fairlead.core.errors import ConfigError, DictionaryError
from fairlead.data import iter_batches
from fairlead.dictionaries import (
    Crosscoder,
    DictionaryConfig,
    Transcoder,
    evaluate_dictionary,
    find_kind,
    fit_dictionary,
    load_dictionary,
    train_crosscoder,
    train_dictionary,
    train_transcoder,
)
from fairlead.dictionaries.crosscoder import site_norms
from fairlead.dictionaries.joint import Place, harvest_joint
from fairlead.dictionaries.kinds import StepState
from fairlead.dictionaries.latent_scaling import latent_scaling
from fairlead.dictionaries.quality import measure_quality
from fairlead.reports.quality import render_quality
from fairlead.studies.dictionaries import train_several

from .planting import codes, noise, unit_rows

CONFIG = DictionaryConfig(
    d_dict=64, k=4, num_tokens=4000, batch_tokens=50, buffer_tokens=200, checkpoint_every=10
)
SITES = {"site": "layers.1.mlp_in", "to_site": "layers.1.mlp_out"}


@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_gradients_equal_autograds_on_the_dense_formula(kind):
    config = DictionaryConfig(
        kind=kind, d_dict=40, k=3, k_aux=5, aux_weight=0.5, widths=(10, 14), skip=True
    ).sized(10)
    x = codes(32, 24, rate=0.2, seed=0) @ unit_rows(24, 24, 1)
    params = find_kind(kind).start(x, config, torch.Generator().manual_seed(0))
    params["b_enc"] = params["b_enc"] + 0.05
    if kind == "transcoder":
        params["W_skip"] = 0.1 * torch.randn(14, 10, generator=torch.Generator().manual_seed(2))
    else:
        params["W_dec"][:, 10:] *= torch.linspace(0, 1, 40)[:, None]  # other shares of the two sites
        params["W_dec"] /= params["W_dec"].norm(dim=-1, keepdim=True)
    dead = torch.arange(40) % 3 == 0
    found = find_kind(kind).step(params, x, config, StepState(0.0, dead))

    p = {name: value.clone().requires_grad_() for name, value in params.items()}
    read, want = (x[:, :10], x[:, 10:]) if kind == "transcoder" else (x, x)
    centre = 0.0 if kind == "transcoder" else p["b_dec"]
    pre = (read - centre) @ p["W_enc"] + p["b_enc"]
    weight = site_norms(params["W_dec"], (10, 14)).sum(1) if kind == "crosscoder" else torch.ones(40)
    ranked = pre.detach().relu() * weight
    mask = (ranked >= ranked.flatten().topk(32 * 3).values[-1]) & (ranked > 0)
    error = (pre * mask) @ p["W_dec"] + p["b_dec"] - want
    if kind == "transcoder":
        error = error + read @ p["W_skip"].T
    aux = pre[:, dead].relu().topk(5, dim=-1)
    acts = torch.zeros(32, int(dead.sum())).scatter(1, aux.indices, aux.values)
    loss = error.square().mean() + 0.5 * (acts @ p["W_dec"][dead] + error.detach()).square().mean()
    loss.backward()
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found.num_active == int(mask.sum())
    along = (p["W_dec"].grad * params["W_dec"]).sum(-1, keepdim=True) * params["W_dec"]
    for name, grad in {n: v.grad for n, v in p.items()}.items():
        wanted = grad - along if name == "W_dec" else grad
        torch.testing.assert_close(
            found.grads[name], wanted, atol=1e-6, rtol=1e-4, msg=lambda t, n=name: f"{n}: {t}"
        )


def trained(kind: str, x: torch.Tensor, widths: tuple[int, ...], **options) -> dict[str, torch.Tensor]:
    settings = {"num_tokens": len(x), "batch_tokens": 128, "lr": 6e-3, "seed": 1, **options}
    config = DictionaryConfig(kind=kind, widths=widths, **settings).sized(min(widths))
    with torch.no_grad():
        return fit_dictionary(iter(x.split(128)), config).export()


def test_a_transcoder_finds_which_input_feature_makes_which_output_feature():
    reads, writes = unit_rows(24, 16, 1), unit_rows(24, 20, 2)

    def batch(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        c = codes(num, 24, rate=0.08, seed=seed)
        return c @ reads + noise(num, 16, seed), c @ writes + noise(num, 20, seed + 1)

    x = torch.cat(batch(60_000, 0), dim=1)
    w = trained("transcoder", x, (16, 20), d_dict=32, k=3)
    found = Transcoder(w, site="layers.0.mlp_in", to_site="layers.0.mlp_out")
    read, want = batch(4000, 7)
    fvu = (found.reconstruct(read) - want).square().sum() / (want - want.mean(0)).square().sum()
    linear = torch.linalg.lstsq(x[:, :16], x[:, 16:]).solution
    floor = (read @ linear - want).square().sum() / (want - want.mean(0)).square().sum()
    assert fvu < 0.15 and fvu < floor, f"FVU {fvu:.3f}; the best linear map leaves {floor:.3f}"
    made = writes @ found.decoder.T  # [24, 32]
    best = made.argmax(-1)
    hit = made.max(-1).values > 0.9
    assert hit.float().mean() > 0.7
    on = found.encode(2 * reads)  # each input feature alone
    right = on.argmax(-1) == best
    assert right[hit].float().mean() > 0.9, "the latent that reads a feature writes what it causes"


def test_the_skip_path_takes_the_linear_part():
    reads, writes = unit_rows(24, 16, 1), unit_rows(24, 16, 2)
    linear = torch.randn(16, 16, generator=torch.Generator().manual_seed(3)) / 4
    c = codes(40_000, 24, rate=0.08, seed=0)
    read = c @ reads + torch.randn(40_000, 16, generator=torch.Generator().manual_seed(4))
    x = torch.cat([read, c @ writes + 3 * read @ linear], dim=1)
    left = {}
    for skip in (False, True):
        w = trained("transcoder", x, (16, 16), d_dict=32, k=3, skip=skip)
        found = Transcoder(w, site="layers.0.mlp_in", to_site="layers.0.mlp_out")
        error = found.reconstruct(x[:4000, :16]) - x[:4000, 16:]
        left[skip] = float(error.square().sum() / (x[:4000, 16:] - x[:4000, 16:].mean(0)).square().sum())
    assert left[True] < 0.5 * left[False], f"FVU without skip {left[False]:.2f}, with {left[True]:.2f}"


def planted_pair(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two models: features 0 to 13 in both, 14 to 17 in the first only, 18 to 21 in the second only."""
    features = unit_rows(22, 16, 5)
    c = codes(num, 22, rate=0.08, seed=seed)
    first, second = c.clone(), c.clone()
    first[:, 18:], second[:, 14:18] = 0, 0
    return first @ features + noise(num, 16, seed), second @ features + noise(num, 16, seed + 1), features


def planted_crosscoder() -> Crosscoder:
    a, b, _ = planted_pair(80_000, 0)
    w = trained("crosscoder", torch.cat([a, b], dim=1), (16, 16), d_dict=32, k=3)
    w["threshold"] = w["threshold"] / site_norms(w["W_dec"], (16, 16)).sum(1)
    w["site_scale"] = torch.ones(2)
    place = "layers.0.resid_post"
    return Crosscoder(w, sites=[place, place], widths=[16, 16])


def test_planted_shared_and_exclusive_features_and_a_false_exclusive_unmasked():
    crosscoder = planted_crosscoder()
    a, b, features = planted_pair(8000, 9)
    recon = crosscoder.decode(crosscoder.encode(crosscoder.join([a, b])))
    joint = torch.cat([a, b], dim=1)
    assert (recon - joint).square().sum() / (joint - joint.mean(0)).square().sum() < 0.2
    rows = torch.stack(crosscoder.split(crosscoder.decoder))  # [2, 32, 16]
    unit = torch.nn.functional.normalize(rows, dim=-1)
    match = (unit @ features.T).amax(0)  # [32, 22], the better of both sites
    latent = match.argmax(0)
    hit = match.amax(0) > 0.9
    assert hit.float().mean() > 0.7, f"features found: {hit}"
    share = crosscoder.relative_norms()[latent, 1]
    kinds = torch.tensor([0.5] * 14 + [0.0] * 4 + [1.0] * 4)
    assert torch.all((share - kinds)[hit].abs() < 0.2), f"decoder's share at the second model: {share}"

    # sparsity shrinks a shared latent's row at the first model away: by its decoder it now looks exclusive to the second
    false = int(latent[:14][hit[:14]][0])
    true = int(latent[18:][hit[18:]][0])
    shrunk = dict(crosscoder.weights)
    shrunk["W_dec"] = shrunk["W_dec"].clone()
    shrunk["W_dec"][false, :16] = 0
    wrong = Crosscoder(shrunk, sites=crosscoder.sites, widths=crosscoder.widths)
    found = latent_scaling(wrong, (a, b), strong=1, latents=torch.tensor([false, true]))
    assert torch.all(found.share > 0.9), "both look exclusive by their decoder"
    assert found.nu_error[0] > 0.7, "the first model's error still holds the shared concept"
    assert found.nu_error[1].abs() < 0.2 and found.nu_reconstruction[1].abs() < 0.3
    assert found.exclusive().tolist() == [False, True]

    # decoupling: another latent carries the concept at the first model, so that the error there is small
    split = {name: value.clone() for name, value in wrong.weights.items()}
    spare = int((match.amax(1)).argmin())
    for name, row in (("W_enc", 1), ("b_enc", 0), ("threshold", 0)):
        split[name].select(row, spare).copy_(split[name].select(row, false))
    split["W_dec"][spare] = 0
    split["W_dec"][spare, :16] = crosscoder.decoder[false, :16]
    decoupled = Crosscoder(split, sites=crosscoder.sites, widths=crosscoder.widths)
    found = latent_scaling(decoupled, (a, b), strong=1, latents=torch.tensor([false, true]))
    assert found.nu_error[0].abs() < 0.3 and found.nu_reconstruction[0] > 0.7
    assert found.exclusive().tolist() == [False, True]


def test_harvested_places_are_the_same_tokens(model, other_model, rows):
    places = [
        Place(model, s) for s in map(training.Site.parse, ("layers.0.resid_post", "layers.2.resid_post"))
    ]
    places.append(Place(other_model, training.Site.parse("layers.1.resid_post")))
    found = harvest_joint(places, rows[:6], batch_size=3)
    wanted = [[], [], []]
    for batch in iter_batches(rows[:6], batch_size=3, pad_id=model.pad_id):
        for number, place in enumerate(places):
            value = place.model.capture(batch, [place.site])[str(place.site)]
            real = batch.attention_mask.bool()
            wanted[number].append(value[real & (real.long().cumsum(1) > 1)])
    for one, parts in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, torch.cat(parts))
    assert len({part.shape for part in found}) == 1


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_of_a_model_is_better_than_the_mean_and_comes_back(skip, model, rows, tmp_path):
    config = CONFIG.model_copy(update={"skip": skip})
    made = train_transcoder(model, rows, **SITES, config=config, out=tmp_path / "t")
    found = load_dictionary(tmp_path / "t")
    assert isinstance(found, Transcoder) and found.sha256 == made.sha256
    assert (str(found.site), str(found.to_site)) == tuple(SITES.values())
    read, want = harvest_joint([Place(model, found.site), Place(model, found.to_site)], rows)
    fvu = (found.reconstruct(read) - want).square().sum() / (want - want.mean(0)).square().sum()
    assert fvu < 0.9 and fvu == pytest.approx(made.metrics["fvu"], abs=0.25), "scales are folded in"
    torch.testing.assert_close(found.decoder.norm(dim=-1), torch.ones(64), atol=1e-4, rtol=0)
    assert found.direction(3).site == found.to_site
    with pytest.raises(DictionaryError, match="does not reconstruct"):
        found.check(model)
    found.check(model, any_kind=True)
    assert train_transcoder(model, rows, **SITES, config=config, out=tmp_path / "t").sha256 == made.sha256
    with pytest.raises(DictionaryError, match="other settings"):
        train_transcoder(model, rows, **SITES, config=config.model_copy(update={"k": 3}), out=tmp_path / "t")


def test_an_interrupted_crosscoder_goes_on_to_the_same_weights(
    model, other_model, rows, tmp_path, monkeypatch
):
    both, site = [model, other_model], ["layers.1.resid_post"]
    whole = train_crosscoder(both, rows, sites=site, config=CONFIG)
    real = training.Trainer.step

    def interrupted(self, batch):
        if self.done == 37:
            raise KeyboardInterrupt
        real(self, batch)

    monkeypatch.setattr(training.Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_crosscoder(both, rows, sites=site, config=CONFIG, out=tmp_path / "c")
    monkeypatch.setattr(training.Trainer, "step", real)
    resumed = train_crosscoder(both, rows, sites=site, config=CONFIG, out=tmp_path / "c")
    torch.testing.assert_close(resumed.decoder, whole.decoder)
    found = load_dictionary(tmp_path / "c")
    assert isinstance(found, Crosscoder) and found.sha256 == resumed.sha256
    found.check_models(both)
    with pytest.raises(DictionaryError, match=r"fingerprint.*Next"):
        found.check_models([other_model, model])
    acts = harvest_joint([Place(m, found.sites[0]) for m in both], rows)
    codes_ = found.encode(found.join(acts))
    assert 1 < float((codes_ > 0).float().sum(-1).mean()) < 8, "the inference threshold keeps about k"
    error = [
        (part - h).square().sum() / (h - h.mean(0)).square().sum()
        for part, h in zip(found.split(found.decode(codes_)), acts, strict=True)
    ]
    assert max(error) < 0.95, f"FVU of the two models: {error}"


def test_a_crosscoder_over_layers_and_what_it_refuses(model, rows):
    found = train_crosscoder(model, rows, sites=["layers.0.resid_post", "layers.2.resid_post"], config=CONFIG)
    assert found.widths == (32, 32) and found.relative_norms().shape == (64, 2)
    torch.testing.assert_close(found.relative_norms().sum(1), torch.ones(64))
    assert str(found.direction_at(0, 1).site) == "layers.2.resid_post"
    with pytest.raises(DictionaryError, match="two sites or two models"):
        train_crosscoder(model, rows, sites=["layers.0.resid_post"], config=CONFIG)


def test_a_crosscoder_is_measured_place_by_place(model, rows):
    """Loss and mean of a place are those that an autoencoder of the site is measured with; the error is the place's own."""
    sites = ["layers.0.resid_post", "layers.2.resid_post"]
    found = train_crosscoder(model, rows, sites=sites, config=CONFIG)
    quality = measure_quality(model, found, rows)
    assert list(quality.places) == sites and quality.site == " and ".join(sites)
    acts = harvest_joint([Place(model, site) for site in found.sites], rows)
    recon = found.split(found.decode(found.encode(found.join(acts))))
    for name, part, made in zip(sites, acts, recon, strict=True):
        fvu = (part - made).square().sum() / (part - part.mean(0)).square().sum()
        assert quality.places[name]["fvu"] == pytest.approx(float(fvu), rel=1e-3)
    losses = []
    for site in sites:
        alone = evaluate_dictionary(model, train_dictionary(model, rows, site=site, config=CONFIG), rows)
        losses.append([alone["ce_model"], alone["ce_mean"]])
    both = [sum(each) / 2 for each in zip(*losses, strict=True)]
    assert [quality.metrics["ce_model"], quality.metrics["ce_mean"]] == pytest.approx(both, rel=1e-4)
    shares = [place["ce_recovered"] for place in quality.places.values()]
    assert quality.metrics["ce_recovered"] == pytest.approx(sum(shares) / 2) and max(shares) <= 1.05
    assert 0 < quality.metrics["fvu_pca"] < 1 and quality.num_tokens == len(acts[0])


def test_a_crosscoder_over_two_models_is_measured_with_both(model, other_model, rows):
    found = train_crosscoder([model, other_model], rows, sites=["layers.1.resid_post"], config=CONFIG)
    with pytest.raises(DictionaryError, match="--second"):
        measure_quality(model, found, rows)
    quality = measure_quality(model, found, rows, second=other_model)
    assert len(quality.places) == 2 and all("layers.1.resid_post" in name for name in quality.places)
    losses = [
        evaluate_dictionary(
            one, train_dictionary(one, rows, site="layers.1.resid_post", config=CONFIG), rows
        )["ce_model"]
        for one in (model, other_model)
    ]
    assert quality.metrics["ce_model"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    page = render_quality(quality)
    assert all(name in page for name in quality.places)


def test_transcoder_and_crosscoder_on_a_store_are_those_of_the_texts(
    model, other_model, rows, tmp_path, monkeypatch
):
    sites = list(SITES.values())
    store = ActivationStore.harvest(model, rows, sites, tmp_path, shard_tokens=60)
    config = CONFIG.model_copy(update={"num_tokens": 500})
    made = [
        (
            train_transcoder(model, data, **SITES, config=config),
            train_crosscoder(model, data, sites=sites, config=config),
        )
        for data in (rows, store)
    ]
    for direct, stored in zip(*made, strict=True):
        torch.testing.assert_close(stored.decoder, direct.decoder, atol=1e-4, rtol=1e-3)
        assert stored.config["identity"] == direct.config["identity"]
    monkeypatch.setattr(type(model), "capture", lambda *_, **__: pytest.fail("the store is read"))
    train_transcoder(model, store, **SITES, config=config)
    with pytest.raises(ConfigError, match="two models"):
        train_crosscoder([model, other_model], store, sites=sites[:1], config=config)
    with pytest.raises(ConfigError, match="holds"):
        train_transcoder(model, store, site="layers.0.mlp_in", to_site="layers.0.mlp_out", config=config)


@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_several_processes_are_refused_before_anything_is_read(model, kind, tmp_path):
    with pytest.raises(ConfigError, match="one process"):
        train_several(
            model,
            "no such file",
            out=tmp_path / "d",
            kinds=[kind],
            to_site=SITES["to_site"] if kind == "transcoder" else None,
            together=True,
        )


def test_limits_on_a_store_are_refused(model, rows, tmp_path):
    store = ActivationStore.harvest(model, rows, [SITES["site"]], tmp_path)
    low = DictionaryConfig(harvest_dtype="bfloat16", num_tokens=500)
    with pytest.raises(ConfigError, match="harvest_dtype"):
        train_several(model, str(store.folder), out=tmp_path / "d", config=low)
    with pytest.raises(ConfigError, match="harvest_dtype"):
        train_transcoder(model, store, **SITES, config=low)
    with pytest.raises(ConfigError, match="max-examples"):
        train_several(model, str(store.folder), out=tmp_path / "d", max_examples=3)
