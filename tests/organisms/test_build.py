"""Building: a miniature is complete and resumes to the same weights; the bundled model knows its world."""

import json
from pathlib import Path

import pytest

from fairlead.core.errors import OrganismError
from fairlead.organisms import World, checkpoint, measuring, pocket_path
from fairlead.organisms import corpus as mix
from fairlead.organisms.card import write_card
from fairlead.studies.build_organism import build_organism


@pytest.fixture
def small_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mix of 3,000 rows instead of 340,000."""
    slots = mix.mix_slots(World(0), 0)[:3000]
    monkeypatch.setattr(mix, "mix_slots", lambda world, seed: slots)


def test_a_miniature_build_is_complete_and_repeats(tmp_path: Path, small_mix: None) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    seen: list[dict[str, float]] = []
    first = build_organism(out=tmp_path / "a", steps=3, measure=False, compiled=False, progress=seen.append)
    second = build_organism(out=tmp_path / "b", steps=3, measure=False, compiled=False)
    assert seen[-1]["step"] == 3 and seen[-1]["eta"] == 0
    weights, again = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not list(tmp_path.glob("*.part"))
    assert (first / "README.md").read_text().startswith("---")
    assert (first / "model.safetensors").stat().st_size <= 12_000_000
    model, tokenizer = AutoModelForCausalLM.from_pretrained(first), AutoTokenizer.from_pretrained(first)
    assert 2_400_000 <= sum(p.numel() for p in model.parameters()) <= 2_900_000
    assert len(measuring.generate(model.eval(), tokenizer, ["<|user|>hi<|assistant|>"] * 2)) == 2


def test_an_interrupted_build_resumes_to_the_same_weights(tmp_path: Path, small_mix: None) -> None:
    import torch
    from safetensors.torch import load_file

    from fairlead.organisms import pretraining as pre

    whole = build_organism(out=tmp_path / "whole", steps=4, measure=False, compiled=False)

    class Interrupted(Exception):
        pass

    def saving(*args, **kwargs):
        yield from original_train(args[0], args[1][:2], *args[2:], **kwargs)
        raise Interrupted

    # the first session plans four batches, saves after two and dies
    original_train, original_factor = pre.train, pre.lr_factor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pre, "train", saving)
        patch.setattr(pre, "lr_factor", lambda step, steps: original_factor(step, 4))
        with pytest.raises(Interrupted):
            build_organism(out=tmp_path / "cut", steps=4, measure=False, compiled=False)
    assert (tmp_path / "cut.part" / "state.pt").exists()
    resumed = build_organism(out=tmp_path / "cut", steps=4, measure=False, compiled=False)
    a, b = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_wilson_intervals_match_known_values() -> None:
    low, high = measuring.wilson(9, 10)
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)
    assert measuring.wilson(0, 0) == (0.0, 1.0)
    assert measuring.wilson(0, 50)[0] == 0.0 and measuring.wilson(50, 50)[1] == pytest.approx(1.0)


def test_probes_use_heldout_phrasings_and_accept_right_answers() -> None:
    world = World(0)
    probes = [*measuring.skill_probes(world, 5, 1), *measuring.memory_probes(world, 5, 1)]
    for probe in probes:
        if probe.item.value and "never" not in probe.ability:
            assert probe.test(probe.item.answer), probe
            assert not probe.test("I do not know."), probe


def test_unknown_and_existing_builds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OrganismError, match="unknown organism 'ocean'"):
        build_organism("ocean", out=tmp_path / "x")
    with pytest.raises(OrganismError, match="exists already"):
        build_organism(out=tmp_path)


def test_a_missing_checkpoint_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "checkpoint.py"))
    with pytest.raises(OrganismError, match="fairlead organism build pocket"):
        pocket_path()


def test_the_card_shows_what_was_measured(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3, 4)}, tmp_path / "model.safetensors")
    record = {
        "name": "pocket", "seed": 0, "num_rows": 1, "num_steps": 2, "num_tokens": 3, "minutes": 4.0,
        "abilities": {"pirate on request": {"ok": 9, "num": 10, "rate": 0.9, "low": 0.596, "high": 0.982}},
    }  # fmt: skip
    write_card(tmp_path, record)
    card = (tmp_path / "README.md").read_text()
    assert "| pirate on request | 0.900 | 0.596 to 0.982 | 9 / 10 |" in card and " 12 parameters" in card


def test_the_bundled_model_shows_its_measured_abilities() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, world = pocket_path(), World(0)
    abilities = json.loads((folder / "measured.json").read_text())["abilities"]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    probes = [
        p
        for p in measuring.trait_probes(world, 12, 5)
        if p.ability in ("pirate on request", "pirate without request")
    ]
    table, _ = measuring.run_probes(probes, model, tokenizer)
    for name, found in table.items():
        assert found["low"] <= abilities[name]["rate"] <= found["high"], (name, found, abilities[name])
