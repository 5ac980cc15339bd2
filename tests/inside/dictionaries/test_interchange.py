"""Files of SAELens, sparsify, Gemma Scope and Llama Scope give the outputs of the libraries that wrote or read them.

The archives were made by `scripts/foreign_dictionaries.py` with sae-lens 6.54.12 and eai-sparsify 1.3.3.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fairlead.core.errors import DictionaryError
from fairlead.dictionaries import Dictionary, Transcoder, hub, load_dictionary, save_sparsify
from fairlead.dictionaries.saelens import from_saelens

ARCHIVES = Path(__file__).parent / "archives"
FOLDERS = sorted(
    path.parent.relative_to(ARCHIVES).as_posix() for path in ARCHIVES.rglob("parity.safetensors")
)
NAMES = {  # released suites: how they are called on the Hub
    "gemma-scope-2b-pt-res/layer_2/width_16k/average_l0_7": "hf:gemma-scope-2b-pt-res/layer_2/width_16k/average_l0_7",
    "Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L2R-8x": "hf:fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L2R-8x",
}


@pytest.fixture
def offline_hub(monkeypatch):
    """The Hub's cache as a local folder: no network, the patterns of the download are honoured."""
    asked = []

    def snapshot(repo_id, *, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return str(ARCHIVES / repo_id.split("/")[-1])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return asked


def test_there_is_an_archive_for_every_layout():
    assert len(FOLDERS) == 17, FOLDERS


@pytest.mark.parametrize("name", FOLDERS)
def test_outputs_equal_those_of_the_library(name, offline_hub):
    source = NAMES.get(name, ARCHIVES / name)
    found = load_dictionary(source)
    stored = load_file(ARCHIVES / name / "parity.safetensors")
    torch.testing.assert_close(found.encode(stored["x"]), stored["acts"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.reconstruct(stored["x"]), stored["out"], atol=1e-5, rtol=1e-4)
    some = [3, 0, 31]
    torch.testing.assert_close(
        found.encode_latents(stored["x"], some), stored["acts"][:, some], atol=1e-5, rtol=1e-4
    )
    is_transcoder = "transcoder" in name or "skip" in name
    assert type(found) is (Transcoder if is_transcoder else Dictionary)
    assert found.site.layer == 2
    if is_transcoder:
        assert str(found.to_site) == "layers.2.mlp_out"


@pytest.mark.parametrize("name", FOLDERS)
def test_saved_again_it_gives_the_same_outputs(name, tmp_path, offline_hub):
    found = load_dictionary(NAMES.get(name, ARCHIVES / name))
    again = load_dictionary(found.save(tmp_path / "d"))
    stored = load_file(ARCHIVES / name / "parity.safetensors")
    assert again.sha256 == found.sha256 and again.architecture == found.architecture
    torch.testing.assert_close(again.encode(stored["x"]), found.encode(stored["x"]))
    if found.topk is not None:
        place = save_sparsify(found, tmp_path / "s")
        twice = load_dictionary(place)
        torch.testing.assert_close(twice.encode(stored["x"]), found.encode(stored["x"]), atol=1e-5, rtol=1e-4)


def test_what_is_fetched_by_name_and_what_never_is(offline_hub):
    load_dictionary(NAMES["gemma-scope-2b-pt-res/layer_2/width_16k/average_l0_7"])
    repo, patterns = offline_hub[0]
    assert repo == "google/gemma-scope-2b-pt-res"
    assert patterns == [
        f"layer_2/width_16k/average_l0_7/{end}" for end in ("*.json", "*.safetensors", "*.npz")
    ]
    with pytest.raises(DictionaryError, match="no file that can be read"):
        load_dictionary("hf:google/gemma-scope-2b-pt-res/layer_9")
    with pytest.raises(DictionaryError, match="names no repository"):
        load_dictionary("hf:nobody")


def test_offline_and_not_in_the_cache_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DictionaryError, match=r"not in the cache.*HF_HUB_OFFLINE"):
        hub.fetch_dictionary("hf:google/gemma-scope-2b-pt-mlp/layer_1/width_16k/average_l0_9")


def test_gemma_scopes_other_places_and_the_second_suite(tmp_path):
    """Layouts of huggingface.co/google/gemma-scope-2b-pt-transcoders and gemma-scope-2-*, as SAELens' converters read them."""
    source = ARCHIVES / "gemma-scope-2b-pt-res/layer_2/width_16k/average_l0_7/params.npz"
    arrays = dict(np.load(source))
    x = torch.randn(5, 16)
    pre = x @ torch.from_numpy(arrays["W_enc"]) + torch.from_numpy(arrays["b_enc"])
    acts = pre.relu() * (pre > torch.from_numpy(arrays["threshold"]))

    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_3" / "width_16k"
    folder.mkdir(parents=True)
    shutil.copy(source, folder / "params.npz")
    found = load_dictionary(folder)
    assert (str(found.site), str(found.to_site)) == ("layers.3.mlp_in", "layers.3.mlp_out")
    torch.testing.assert_close(found.encode(x), acts, atol=1e-5, rtol=1e-4)

    folder = tmp_path / "gemma-scope-2b-pt-att" / "layer_3"
    folder.mkdir(parents=True)
    shutil.copy(source, folder / "params.npz")
    with pytest.raises(DictionaryError, match=r"names no site.*Next: pass site"):
        load_dictionary(folder)
    assert str(load_dictionary(folder, site="layers.3.attn_out").site) == "layers.3.attn_out"

    folder = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k"
    folder.mkdir(parents=True)
    shutil.copy(source, folder / "params.npz")
    found = load_dictionary(folder)
    assert str(found.site) == "embed"
    torch.testing.assert_close(found.encode(4 * x), acts, atol=1e-5, rtol=1e-4)  # sqrt(16): Gemma's factor

    folder = tmp_path / "gemma-scope-2-1b-pt" / "transcoder" / "layer_4_width_16k_l0_small_affine"
    folder.mkdir(parents=True)
    skip = torch.randn(16, 16)
    tensors = {("w_" + k[2:] if k.startswith("W_") else k): torch.from_numpy(v) for k, v in arrays.items()}
    save_file({**tensors, "affine_skip_connection": skip}, folder / "params.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"architecture": "jump_relu", "model_name": "gemma-v3-1b"})
    )
    found = load_dictionary(folder)
    wanted = acts @ torch.from_numpy(arrays["W_dec"]) + torch.from_numpy(arrays["b_dec"]) + x @ skip
    torch.testing.assert_close(found.reconstruct(x), wanted, atol=1e-4, rtol=1e-4)


def test_pickled_weights_are_refused_with_a_way_out(tmp_path):
    (tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pth").write_bytes(b"\x80\x04")
    for place in (tmp_path, tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pth"):
        with pytest.raises(DictionaryError, match=r"pickle can run code.*weights_only"):
            load_dictionary(place)


def raw(**settings) -> tuple[dict[str, torch.Tensor], dict]:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "W_enc": torch.randn(8, 12, generator=generator),
        "W_dec": torch.randn(12, 8, generator=generator),
        "b_enc": torch.randn(12, generator=generator),
        "b_dec": torch.randn(8, generator=generator),
    }
    return weights, {"architecture": "standard", "d_in": 8, "d_sae": 12, **settings}


def test_a_constant_scale_is_folded_in_and_what_depends_on_the_token_is_refused():
    weights, config = raw(normalize_activations="expected_average_only_in", norm_scaling_factor=2.5)
    found = Dictionary(from_saelens(weights, config, "d").weights, site="embed")
    plain = Dictionary(from_saelens(*raw(), "d").weights, site="embed")
    x = torch.randn(6, 8)
    torch.testing.assert_close(found.encode(x), plain.encode(2.5 * x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.reconstruct(x), plain.reconstruct(2.5 * x) / 2.5, atol=1e-5, rtol=1e-4)
    for how in ("constant_norm_rescale", "layer_norm", "covariance_whitening"):
        with pytest.raises(DictionaryError, match=f"{how}.*Next"):
            from_saelens(*raw(normalize_activations=how), "d")
    with pytest.raises(DictionaryError, match="fold_activation_norm_scaling_factor"):
        from_saelens(*raw(normalize_activations="expected_average_only_in"), "d")
    with pytest.raises(DictionaryError, match=r"matching_pursuit.*Next"):
        from_saelens(*raw(architecture="matching_pursuit"), "d")


def test_the_oldest_settings_are_understood():
    weights, config = raw(hook_point="blocks.1.hook_resid_pre", activation_fn_str="topk")
    config |= {"activation_fn_kwargs": {"k": 3}, "normalize_activations": False}
    config.pop("architecture")
    found = from_saelens(weights, config, "d").config
    assert found["architecture"] == "topk" and found["k"] == 3
    assert found["hook_name"] == "blocks.1.hook_resid_pre"


def test_sparsify_is_not_given_thresholds_unasked(tmp_path):
    found = load_dictionary(ARCHIVES / "saelens_jumprelu")
    with pytest.raises(DictionaryError, match=r"no thresholds.*pass k"):
        save_sparsify(found, tmp_path)
    place = save_sparsify(found, tmp_path, k=4)
    assert place == tmp_path / "layers.2"
    assert (load_dictionary(place).encode(torch.randn(9, 16)) > 0).sum(-1).max() <= 4


@pytest.fixture
def goodfire(tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A state dict in the layout of huggingface.co/Goodfire/Llama-3.1-8B-Instruct-SAE-l19, made small."""
    draws = torch.Generator().manual_seed(0)
    encoder = torch.nn.Linear(16, 32)
    decoder = torch.nn.Linear(32, 16)
    state = {
        **{f"encoder_linear.{name}": value for name, value in encoder.state_dict().items()},
        **{f"decoder_linear.{name}": value for name, value in decoder.state_dict().items()},
    }
    state = {name: torch.randn(value.shape, generator=draws) for name, value in state.items()}
    folder = tmp_path / "Llama-3.1-8B-Instruct-SAE-l19"
    folder.mkdir()
    torch.save(state, folder / "Llama-3.1-8B-Instruct-SAE-l19.pth")
    return folder, state


def test_goodfires_state_dict_gives_its_own_formula(goodfire, tmp_path, monkeypatch):
    folder, state = goodfire
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, *, allow_patterns: str(folder))
    x = torch.randn(7, 16, generator=torch.Generator().manual_seed(1))
    acts = torch.relu(x @ state["encoder_linear.weight"].T + state["encoder_linear.bias"])
    out = acts @ state["decoder_linear.weight"].T + state["decoder_linear.bias"]
    file = folder / "Llama-3.1-8B-Instruct-SAE-l19.pth"
    for place in (folder, file, "hf:Goodfire/Llama-3.1-8B-Instruct-SAE-l19"):
        found = load_dictionary(place)
        torch.testing.assert_close(found.encode(x), acts, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.reconstruct(x), out, atol=1e-4, rtol=1e-4)
        assert str(found.site) == "layers.19.resid_post"
        assert found.model_name == "meta-llama/Llama-3.1-8B-Instruct"
    again = load_dictionary(found.save(tmp_path / "d"))
    assert again.sha256 == found.sha256
    shutil.copy(file, folder / "other.pt")
    with pytest.raises(DictionaryError, match="name one of them"):
        load_dictionary(folder)
    shutil.copy(file, tmp_path / "nameless.pt")
    with pytest.raises(DictionaryError, match="names no site"):
        load_dictionary(tmp_path / "nameless.pt")


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_a_pickle_with_code_or_in_another_layout_is_refused_and_runs_nothing(goodfire, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, state = goodfire
    cases = {
        "code.pth": {**state, "extra": Harmful()},
        "more.pth": {**state, "config": {"k": 32}},
        "other.pth": {"encoder_linear.weight": torch.ones(32, 16), "decoder.weight": torch.ones(16, 32)},
    }
    for name, value in cases.items():
        torch.save(value, tmp_path / name)
        with pytest.raises(DictionaryError, match=r"pickle can run code.*weights_only"):
            load_dictionary(tmp_path / name, site="layers.1.resid_post")
    assert not (tmp_path / "ran").exists()


def test_pickles_are_fetched_from_goodfire_alone(monkeypatch, tmp_path):
    asked = []

    def snapshot(repo, *, allow_patterns):
        asked.append((repo, allow_patterns))
        return str(tmp_path)

    (tmp_path / "some.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    hub.fetch_dictionary("hf:Goodfire/Llama-3.3-70B-Instruct-SAE-l50")
    hub.fetch_dictionary("hf:someone/else")
    assert "*.pt" in asked[0][1] and not any("pt" in pattern for pattern in asked[1][1])
