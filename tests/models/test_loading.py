"""Loading, saving, fingerprints, and what goes wrong with model folders."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from fairlead.core.errors import ConfigError, ModelError, RunError, SiteError
from fairlead.core.site import Site
from fairlead.models import Model, load_model


@pytest.fixture
def folder(tiny, tmp_path):
    model = Model.wrap(tiny.hf("llama"), tiny.tokenizer(), "llama")
    return model.save(tmp_path / "model")


@pytest.mark.parametrize("name", ["llama", "bert", "mamba", "gemma3", "qwen3_moe"])
def test_save_and_load_give_the_same_model(tiny, tmp_path, name):
    model = Model.wrap(tiny.hf(name), tiny.tokenizer(), name)
    loaded = load_model(model.save(tmp_path / name), device="cpu")
    assert loaded.fingerprint == model.fingerprint and loaded.family == model.family
    assert loaded.is_causal == model.is_causal == (name != "bert")
    batch = tiny.batch()
    with torch.no_grad():
        torch.testing.assert_close(loaded.forward(batch), model.forward(batch))
    assert not loaded.hf.training


def test_fingerprint_follows_weights_and_not_dtype_or_mode(tiny):
    model = Model.wrap(tiny.hf("llama"), tiny.tokenizer(), "llama")
    first = model.fingerprint
    assert model.fingerprint == first == Model.wrap(tiny.hf("llama"), tiny.tokenizer(), "b").fingerprint
    assert first != tiny.model("llama", seed=9).fingerprint
    for parameter in model.hf.parameters():
        before = parameter.data.flatten()[0].item()
        parameter.data.view(-1)[0] += 1e-3
        assert model.fingerprint != first, "a changed weight went unnoticed"
        parameter.data.view(-1)[0] = before
    assert model.fingerprint == first
    model.hf.train()
    model.hf.name_or_path = "elsewhere"
    assert model.fingerprint == first
    model.hf.to(torch.bfloat16)
    rounded = model.fingerprint
    model.hf.to(torch.float32)
    assert model.fingerprint == rounded != first  # the identity is that of the values


def test_fingerprint_samples_large_tensors_over_their_whole_length():
    from fairlead.models.fingerprint import SAMPLE, WHOLE, _spread

    index = _spread(10 * WHOLE)
    assert index[0] == 0 and index[-1] == 10 * WHOLE - 1 and len(index.unique()) == SAMPLE


def test_missing_folders_and_models(tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        load_model("nobody/no-such-model-anywhere")
    with pytest.raises(ModelError, match="no such organism"):
        load_model("organism:atlantis")


def test_missing_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="no tokenizer in the folder"):
        load_model(folder)


def test_wrong_tokenizer(tiny, folder):
    tiny.tokenizer(80).save_pretrained(folder)
    with pytest.raises(ModelError, match="ids up to 79, the model has embeddings for 64"):
        load_model(folder)
    with pytest.raises(ModelError, match="tokenizer of another model"):
        Model.wrap(tiny.hf("llama"), tiny.tokenizer(80), "x")


def test_broken_config(folder):
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(ModelError, match="config cannot be read"):
        load_model(folder)


def test_unknown_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-thing"}))
    with pytest.raises(ModelError, match="does not know this architecture"):
        load_model(folder)


def test_unreadable_and_missing_weights(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="weights cannot be read"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="weights cannot be read"):
        load_model(folder)


def test_incomplete_weights(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 weights"):
        load_model(folder)


def test_remote_code_is_not_run_unasked(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ModelError, match="brings its own code"):
        load_model(folder)
    assert not (folder / "ran").exists()


def test_settings(folder):
    with pytest.raises(ConfigError, match="dtype is 'int4'"):
        load_model(folder, dtype="int4")
    with pytest.raises(ConfigError, match="device is"):
        load_model(folder, device="abacus")
    assert load_model(folder, dtype="bfloat16", device="cpu").dtype == torch.bfloat16


def test_pad_token_is_chosen_without_adding_tokens(tiny):
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    model = Model.wrap(tiny.hf("llama"), tokenizer, "x")
    assert model.pad_id == 2 and len(tokenizer) == 64


def test_a_failed_save_leaves_the_old_folder(folder, monkeypatch):
    model = load_model(folder, device="cpu")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model.tokenizer, "save_pretrained", full)
    before = model.fingerprint
    with pytest.raises(RunError, match="No space left"):
        model.save(folder)
    assert load_model(folder, device="cpu").fingerprint == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_adapter_is_merged(tiny, folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    hf = load_model(folder, device="cpu").hf
    torch.manual_seed(0)
    peft = get_peft_model(
        hf, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    batch = tiny.batch()
    with torch.no_grad():
        expected = peft(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    peft.save_pretrained(tmp_path / "adapter")
    plain, merged = (
        load_model(folder, device="cpu"),
        load_model(folder, device="cpu", adapter=tmp_path / "adapter"),
    )
    real = batch.attention_mask.bool()
    with torch.no_grad():
        torch.testing.assert_close(merged.forward(batch)[real], expected[real], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(plain.forward(batch)[real], expected[real], atol=1e-3)
    assert merged.fingerprint != plain.fingerprint
    shutil.rmtree(tmp_path / "adapter")
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ModelError, match="not a LoRA adapter"):
        load_model(folder, device="cpu", adapter=tmp_path / "adapter")


def test_sites_have_names_and_errors_list_them(tiny):
    model = tiny.model("mamba")
    assert [str(site) for site in model.sites()][:4] == [
        "embed",
        "layers.0.resid_pre",
        "layers.0.attn_out",
        "layers.0.resid_post",
    ]
    assert model.default_site() == Site("resid_post", 1)
    with pytest.raises(
        SiteError, match=r"layers\.1\.mlp_out: 'mamba' has no such place.*layers\.1\.resid_pre"
    ):
        model.capture(tiny.batch(), ["layers.1.mlp_out"])
    with pytest.raises(SiteError, match="3 layers, 0 to 2"):
        model.module_at("layers.3.resid_post")
    with pytest.raises(SiteError, match="not a kind of site"):
        model.sites("attention")
    with pytest.raises(ConfigError, match="sites is empty"):
        model.capture(tiny.batch(), [])


def test_rwkv_reads_the_same_in_training_and_evaluation_mode(tiny):
    """transformers rescales RWKV's residual stream in evaluation mode only; here it does not."""
    raw = tiny.hf("rwkv")
    batch = tiny.batch()
    with torch.no_grad():
        logits = raw(input_ids=batch.input_ids).logits
    model = Model.wrap(raw, tiny.tokenizer(), "rwkv")
    site = "layers.2.resid_post"
    with torch.no_grad():
        torch.testing.assert_close(model.forward(batch), logits, atol=1e-3, rtol=1e-3)
    one = model.capture(batch, [site])[site]
    model.hf.train()
    torch.testing.assert_close(model.capture(batch, [site])[site], one)


def test_logprobs_are_those_of_the_logits(tiny):
    from fairlead.data import Encoded
    from fairlead.data.rows import Row

    model = tiny.model("llama")
    rows = [[5, 9, 30, 17], [11, 7], [40, 12, 23, 4, 5, 6]]
    encoded = [
        Encoded(ids, [False] + [True] * (len(ids) - 1), 100 + n, Row(text="x")) for n, ids in enumerate(rows)
    ]
    found = model.logprobs(encoded, batch_size=2)
    for ids, scores in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = model.hf(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [0.0] + [float(logits[t - 1, ids[t]]) for t in range(1, len(ids))]
        torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match="encoder"):
        tiny.model("bert").logprobs(encoded)
