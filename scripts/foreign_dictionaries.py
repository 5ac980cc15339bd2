"""Write the archives that the tests of interchange read: tiny dictionaries by the real SAELens and sparsify, with their own outputs.

    SIDE/bin/python scripts/foreign_dictionaries.py write OUT      in an environment with sae-lens 6.54.12 and eai-sparsify 1.3.3
    python scripts/foreign_dictionaries.py export FOLDER           in Fairlead's: dictionaries of every kind in both layouts
    SIDE/bin/python scripts/foreign_dictionaries.py check FOLDER   load those with the libraries, compare the outputs

`write` fills `OUT/NAME/` with a dictionary folder and `OUT/NAME/parity.safetensors` (`x` a batch of inputs, `acts`, `out`).
Gemma Scope's and Llama Scope's files are made here in their published layouts; their outputs come from SAELens' own converters.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file, save_file

D_IN, D_SAE, D_OUT, TOKENS = 16, 32, 12, 24
HOOK, HOOK_OUT = "blocks.2.hook_resid_post", "blocks.2.hook_mlp_out"


def fill(coder: torch.nn.Module, generator: torch.Generator) -> None:
    """Random weights of sizes at which every branch of the activation is taken."""
    with torch.no_grad():
        for name, value in coder.named_parameters():
            size = 0.3 if value.ndim == 2 else 0.2
            value.copy_(size * torch.randn(value.shape, generator=generator))
            if name == "threshold":
                value.abs_().add_(0.1)


def parity(folder: Path, x: torch.Tensor, acts: torch.Tensor, out: torch.Tensor) -> None:
    """Inputs and the library's own outputs beside its files."""
    tensors = {"x": x, "acts": acts, "out": out}
    save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, folder / "parity.safetensors")
    active = (acts != 0).float().mean()
    print(f"{folder.name}: {active:.0%} of the activations are on", file=sys.stderr)
    assert 0.01 < active < 0.9


def write_saelens(out: Path) -> None:
    """Every architecture that Fairlead reads, with the variants of its settings."""
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class
    from sae_lens.saes import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.sae import SAEMetadata

    common = {"d_in": D_IN, "d_sae": D_SAE}
    to = {**common, "d_out": D_OUT, "apply_b_dec_to_input": False}
    made = {
        "standard": ("standard", common),
        "standard_uncentred": ("standard", {**common, "apply_b_dec_to_input": False}),
        "jumprelu": ("jumprelu", common),
        "topk": ("topk", {**common, "k": 5}),
        "topk_rescaled": ("topk", {**common, "k": 5, "rescale_acts_by_decoder_norm": True}),
        "gated": ("gated", common),
        "transcoder": ("transcoder", to),
        "skip_transcoder": ("skip_transcoder", to),
        "jumprelu_transcoder": ("jumprelu_transcoder", to),
        "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", to),
    }
    for number, (name, (architecture, options)) in enumerate(made.items()):
        generator = torch.Generator().manual_seed(number)
        coder_class, config_class = get_sae_class(architecture)
        metadata = SAEMetadata(hook_name=HOOK, model_name="tiny")
        if "d_out" in options:
            metadata.hook_name_out = HOOK_OUT
        coder = coder_class(config_class(**options, metadata=metadata))
        fill(coder, generator)
        finish(coder, out / f"saelens_{name}", generator)
    # trained with these classes, saved for inference as the library does: BatchTopK and Matryoshka become jumprelu
    trainers = {
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {}),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            {"matryoshka_widths": [8, 16, 32]},
        ),
    }
    for name, (trainer, config_class, options) in trainers.items():
        generator = torch.Generator().manual_seed(77)
        coder = trainer(config_class(**common, **options, k=4, metadata=SAEMetadata(hook_name=HOOK)))
        fill(coder, generator)
        coder.topk_threshold.fill_(0.6)
        folder = out / f"saelens_{name}"
        coder.save_inference_model(folder)
        finish(SAE.load_from_disk(folder), folder, generator, save=False)


def finish(coder: torch.nn.Module, folder: Path, generator: torch.Generator, *, save: bool = True) -> None:
    """Save, load back with the library, and store what the loaded one gives."""
    from sae_lens import SAE

    if save:
        coder.save_model(folder)
    loaded = SAE.load_from_disk(folder)
    x = torch.randn(TOKENS, D_IN, generator=generator)
    with torch.no_grad():
        parity(folder, x, loaded.encode(x), loaded(x))


def write_sparsify(out: Path) -> None:
    """Autoencoder, transcoder and skip transcoder, each in the folder of its hook point."""
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    made = {
        "sparsify_topk/layers.2": {},
        "sparsify_transcoder/layers.2.mlp": {"transcode": True},
        "sparsify_skip/layers.2.mlp": {"transcode": True, "skip_connection": True},
    }
    for number, (name, options) in enumerate(made.items()):
        generator = torch.Generator().manual_seed(100 + number)
        coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=5, **options))
        fill(coder, generator)
        coder.save_to_disk(out / name)
        loaded = SparseCoder.load_from_disk(out / name)
        x = torch.randn(TOKENS, D_IN, generator=generator)
        with torch.no_grad():
            parity(out / name, x, *sparsify_outputs(loaded, x))


def sparsify_outputs(coder: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense activations and the reconstruction."""
    found = coder(x, x)
    acts = torch.zeros(len(x), coder.num_latents).scatter(1, found.latent_indices, found.latent_acts)
    return acts, found.sae_out


def write_released(out: Path) -> None:
    """Gemma Scope's and Llama Scope's layouts, read by SAELens' converters from local files."""
    from sae_lens.loading import pretrained_sae_loaders as loaders

    generator = torch.Generator().manual_seed(200)

    def draw(*shape: int, size: float = 0.3) -> torch.Tensor:
        return size * torch.randn(*shape, generator=generator)

    def local(repo_id: str, filename: str, subfolder: str = "", **_: object) -> str:
        return str(out / repo_id.split("/")[-1] / subfolder / filename)

    loaders.hf_hub_download = local

    repo, folder = "google/gemma-scope-2b-pt-res", "layer_2/width_16k/average_l0_7"
    place = out / "gemma-scope-2b-pt-res" / folder
    place.mkdir(parents=True, exist_ok=True)
    gemma = {
        "W_enc": draw(D_IN, D_SAE),
        "W_dec": draw(D_SAE, D_IN),
        "b_enc": draw(D_SAE, size=0.2),
        "b_dec": draw(D_IN, size=0.2),
        "threshold": draw(D_SAE).abs() + 0.1,
    }
    np.savez(place / "params.npz", **{key: value.numpy() for key, value in gemma.items()})
    config, state, _ = loaders.gemma_2_sae_huggingface_loader(repo, folder)
    released(place, {**config, "d_in": D_IN, "d_sae": D_SAE}, state, None, generator)

    repo, folder = "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L2R-8x"
    place = out / "Llama3_1-8B-Base-LXR-8x" / folder
    (place / "checkpoints").mkdir(parents=True, exist_ok=True)
    settings = {
        "d_model": D_IN,
        "d_sae": D_SAE,
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 9.5, "out": 9.5},
        "jump_relu_threshold": 0.9,
        "use_decoder_bias": True,
    }
    (place / "hyperparams.json").write_text(json.dumps(settings))
    llama = {
        "encoder.weight": draw(D_SAE, D_IN),
        "encoder.bias": draw(D_SAE, size=0.2),
        "decoder.weight": draw(D_IN, D_SAE),
        "decoder.bias": draw(D_IN, size=0.2),
    }
    save_file(llama, place / "checkpoints" / "final.safetensors")
    config, state, _ = loaders.llama_scope_sae_huggingface_loader(
        repo, folder, cfg_overrides={"dtype": "float32"}
    )
    released(place, config, state, D_IN**0.5 / 9.5, generator)


def released(
    place: Path,
    config: dict,
    state: dict[str, torch.Tensor],
    scale: float | None,
    generator: torch.Generator,
) -> None:
    """What SAELens makes of a released dictionary, as its `from_pretrained` does."""
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
    from sae_lens.registry import get_sae_class

    config = handle_config_defaulting(config)
    coder_class, config_class = get_sae_class(config["architecture"])
    coder = coder_class(config_class.from_dict(config))
    coder.load_state_dict(state)
    if scale is not None:
        coder.fold_activation_norm_scaling_factor(scale)
    x = torch.randn(TOKENS, D_IN, generator=generator)
    with torch.no_grad():
        parity(place, x, coder.encode(x), coder(x))


def export(out: Path) -> None:
    """What Fairlead trains on random data, kind by kind, as it saves it, and in sparsify's layout."""
    from fairlead.dictionaries import Dictionary, DictionaryConfig, Transcoder, fit_dictionary, save_sparsify

    generator = torch.Generator().manual_seed(0)
    planted = torch.randn(48, D_IN, generator=generator)
    x = (torch.rand(20_000, 48, generator=generator) < 0.05).float() @ planted
    to = torch.randn(D_IN, D_IN, generator=generator)
    for kind in ("batch_topk", "topk", "matryoshka", "jumprelu", "transcoder", "skip_transcoder"):
        joint = kind.endswith("transcoder")
        rows = torch.cat([x, (x @ to).relu()], dim=1) if joint else x
        config = DictionaryConfig(
            kind="transcoder" if joint else kind,
            d_dict=D_SAE,
            k=4,
            num_tokens=20_000,
            batch_tokens=100,
            skip=kind.startswith("skip"),
            widths=(D_IN, D_IN) if joint else (),
        ).sized(D_IN)
        with torch.no_grad():
            weights = fit_dictionary(iter(rows.split(100)), config).export()
        place = {"site": "layers.2.mlp_in", "to_site": "layers.2.mlp_out"}
        found = Transcoder(weights, **place) if joint else Dictionary(weights, site="layers.2.resid_post")
        parity(found.save(out / kind), x[:TOKENS], found.encode(x[:TOKENS]), found.reconstruct(x[:TOKENS]))
        exact = {**weights, "threshold": torch.zeros(D_SAE)}
        found = (
            Transcoder(exact, topk=4, **place)
            if joint
            else Dictionary(exact, topk=4, site="layers.2.resid_post")
        )
        outputs = found.encode(x[:TOKENS]), found.reconstruct(x[:TOKENS])
        parity(save_sparsify(found, out / f"{kind}_in_sparsify"), x[:TOKENS], *outputs)
        if not joint:
            parity(found.save(out / f"{kind}_exact"), x[:TOKENS], *outputs)


def check(folder: Path) -> None:
    """Load every dictionary below a folder with the library whose layout it has; compare with the stored outputs."""
    from sae_lens import SAE
    from sparsify import SparseCoder

    for path in sorted(folder.rglob("parity.safetensors")):
        stored, where = SimpleNamespace(**load_file(path)), path.parent
        with torch.no_grad():
            if (where / "sae.safetensors").is_file():
                acts, out = sparsify_outputs(SparseCoder.load_from_disk(where), stored.x)
            else:
                coder = SAE.load_from_disk(where)
                acts, out = coder.encode(stored.x), coder(stored.x)
        torch.testing.assert_close(acts, stored.acts, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(out, stored.out, atol=1e-5, rtol=1e-4)
        print(f"{where.relative_to(folder)}: equal")


if __name__ == "__main__":
    command, target = sys.argv[1], Path(sys.argv[2])
    if command == "write":
        write_saelens(target)
        write_sparsify(target)
        write_released(target)
    elif command == "export":
        export(target)
    else:
        check(target)
