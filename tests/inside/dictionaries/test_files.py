"""Files, identity, resumption and quality of dictionaries of a model."""

from __future__ import annotations

import json

import pytest
import torch

import fairlead.dictionaries.training as training
from fairlead.core.errors import DictionaryError, RunError
from fairlead.data import Encoded, Row
from fairlead.dictionaries import (
    DictionaryConfig,
    evaluate_dictionary,
    load_dictionary,
    outside_span,
    train_dictionary,
)
from fairlead.dictionaries.source import batches_in_chunk, iter_chunk_orders, plan_chunks

CONFIG = DictionaryConfig(
    d_dict=64, k=4, num_tokens=4000, batch_tokens=50, buffer_tokens=120, passes=2, checkpoint_every=10
)


@pytest.fixture(scope="module")
def dictionary(model, rows):
    return train_dictionary(model, rows, config=CONFIG)


def test_file_has_saelens_layout_and_round_trips(dictionary, model, tmp_path):
    dictionary.save(tmp_path / "d")
    config = json.loads((tmp_path / "d" / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu" and config["d_in"] == 32 and config["d_sae"] == 64
    assert config["hook_name"] == "blocks.1.hook_resid_post" and config["apply_b_dec_to_input"] is True
    loaded = load_dictionary(tmp_path / "d")
    assert loaded.sha256 == dictionary.sha256 and loaded.model_fingerprint == model.fingerprint
    h = torch.randn(3, 5, 32)
    torch.testing.assert_close(loaded.encode(h), dictionary.encode(h))
    # SAELens' jumprelu formula
    w = loaded.weights
    pre = (h - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    torch.testing.assert_close(loaded.encode(h), pre.relu() * (pre > w["threshold"]), atol=1e-5, rtol=1e-4)


def test_some_latents_equal_the_columns_of_all(dictionary):
    h = torch.randn(2, 3, 32)
    torch.testing.assert_close(
        dictionary.encode_latents(h, [5, 60, 5]), dictionary.encode(h)[..., [5, 60, 5]], atol=1e-5, rtol=1e-4
    )


def test_a_foreign_dictionary_needs_a_site(dictionary, tmp_path):
    dictionary.save(tmp_path / "d")
    path = tmp_path / "d" / "cfg.json"
    config = json.loads(path.read_text())
    for key in ("format", "version", "site", "model_fingerprint", "metrics", "sha256"):
        config.pop(key)
    path.write_text(json.dumps(config))
    assert str(load_dictionary(tmp_path / "d").site) == "layers.1.resid_post"
    config["hook_name"] = config["metadata"]["hook_name"] = "transformer.h.3"
    path.write_text(json.dumps(config))
    with pytest.raises(DictionaryError, match="site"):
        load_dictionary(tmp_path / "d")


def test_broken_files_are_named(dictionary, tmp_path):
    with pytest.raises(DictionaryError, match="no such file"):
        load_dictionary(tmp_path / "nothing")
    dictionary.save(tmp_path / "d")
    weights = tmp_path / "d" / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DictionaryError, match="broken"):
        load_dictionary(tmp_path / "d")
    damaged = bytearray(whole)
    damaged[-3] ^= 0x3F
    weights.write_bytes(bytes(damaged))
    with pytest.raises(DictionaryError, match=r"hash|finite"):
        load_dictionary(tmp_path / "d")


def test_another_model_or_site_is_refused_with_the_next_step(dictionary, model, other_model):
    dictionary.check(model)
    dictionary.check(model, "layers.1.resid_post")
    with pytest.raises(DictionaryError, match=r"fingerprint.*Next"):
        dictionary.check(other_model)
    with pytest.raises(DictionaryError, match=r"layers\.1\.resid_post.*Next"):
        dictionary.check(model, "layers.0.resid_post")


def test_an_interrupted_training_goes_on_to_the_same_weights(model, rows, dictionary, tmp_path, monkeypatch):
    real = training.Trainer.step

    def interrupted(self, batch):
        if self.done == 37:
            raise KeyboardInterrupt
        real(self, batch)

    monkeypatch.setattr(training.Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_dictionary(model, rows, config=CONFIG, out=tmp_path / "d")
    assert not (tmp_path / "d").exists() and (tmp_path / "d.part").is_dir()
    monkeypatch.setattr(training.Trainer, "step", real)
    steps = []
    monkeypatch.setattr(
        training.Trainer, "step", lambda self, batch: (steps.append(self.done), real(self, batch))[1]
    )
    resumed = train_dictionary(model, rows, config=CONFIG, out=tmp_path / "d")
    assert steps[0] == 30, "it goes on from the last saved state"
    torch.testing.assert_close(resumed.decoder, dictionary.decoder)
    assert not (tmp_path / "d.part").exists()
    steps.clear()
    assert (
        train_dictionary(model, rows, config=CONFIG, out=tmp_path / "d").sha256 == resumed.sha256
        and not steps
    )
    with pytest.raises(DictionaryError, match="other settings"):
        train_dictionary(model, rows, config=CONFIG.model_copy(update={"k": 3}), out=tmp_path / "d")


def test_a_full_disk_leaves_what_was_there(dictionary, tmp_path, monkeypatch):
    dictionary.save(tmp_path / "d")
    before = (tmp_path / "d" / "cfg.json").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fairlead.dictionaries.dictionary.save_file", full)
    with pytest.raises(RunError, match="No space left"):
        dictionary.save(tmp_path / "d")
    assert (tmp_path / "d" / "cfg.json").read_bytes() == before and load_dictionary(tmp_path / "d")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_no_text_is_an_error(model):
    with pytest.raises(DictionaryError, match="no text"):
        train_dictionary(model, [])
    with pytest.raises(DictionaryError, match="two tokens"):
        train_dictionary(model, [Encoded([5], [False], 0, Row(text="x"))], config=CONFIG)


def test_chunks_hold_every_text_once_an_epoch_within_the_buffer():
    lengths = [5, 0, 7, 3, 9, 4]
    chunks, seen = plan_chunks(lengths, buffer_tokens=12, seed=0), []
    while len(seen) < 5:
        chunk = next(chunks)
        assert chunk.num_tokens == sum(lengths[row] for row in chunk.rows) <= 12
        seen += chunk.rows
    assert sorted(seen) == [0, 2, 3, 4, 5]


def test_skipped_batches_leave_the_rest_as_it_was():
    whole = list(iter_chunk_orders(20, batch_tokens=6, passes=2, seed=3))
    part = list(iter_chunk_orders(20, batch_tokens=6, passes=2, seed=3, skip=4))
    assert len(whole) == batches_in_chunk(20, batch_tokens=6, passes=2) == 6
    for one, other in zip(whole[4:], part, strict=True):
        torch.testing.assert_close(one, other)


def test_evaluation_of_a_perfect_and_of_the_trained_dictionary(dictionary, model, rows):
    found = evaluate_dictionary(model, dictionary, rows)
    assert found["fvu"] < 1 and found["ce_mean"] != found["ce_model"] and 0 <= found["dead"] <= 1
    eye = torch.eye(32)
    weights = {
        "W_enc": torch.cat([eye, -eye], 1),
        "W_dec": torch.cat([eye, -eye]),
        "b_enc": torch.zeros(64),
        "b_dec": torch.zeros(32),
        "threshold": torch.zeros(64),
    }
    perfect = type(dictionary)(weights, site=dictionary.site, model_fingerprint=model.fingerprint)
    best = evaluate_dictionary(model, perfect, rows)
    assert best["fvu"] < 1e-6 and best["ce_recovered"] == pytest.approx(1.0, abs=1e-4)


def test_outside_span_equals_least_squares():
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(12, 6, generator=generator), dim=-1)
    vectors = torch.randn(4, 6, generator=generator)
    index = torch.tensor([[0, 3, 5], [1, 1, 1], [2, 4, 0], [7, 8, 9]])
    used = torch.tensor(
        [[True, True, True], [True, False, False], [True, True, False], [False, False, False]]
    )
    found = outside_span(vectors, decoder, index, used, ridge=1e-7)
    for row in range(4):
        rows = decoder[index[row][used[row]]]
        left = vectors[row]
        if len(rows):
            left = left - rows.T @ torch.linalg.lstsq(rows.T, left[:, None]).solution[:, 0]
        assert float(found[row]) == pytest.approx(float(left.square().sum()), rel=1e-3, abs=1e-5)
