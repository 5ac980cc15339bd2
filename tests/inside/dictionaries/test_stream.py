"""Several dictionaries from one pass equal those made alone, from whatever source; bad batches do no harm."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import LlamaForCausalLM

import fairlead.dictionaries.source as source
from fairlead.activations import ActivationStore, iter_activations
from fairlead.core.errors import ConfigError, DataError, DictionaryError
from fairlead.dictionaries import (
    DictionaryConfig,
    DictionarySpec,
    find_kind,
    train_dictionaries,
    train_dictionary,
)
from fairlead.dictionaries.source import ModelSource, harvest, iter_training_batches
from fairlead.dictionaries.trainer import Trainer
from fairlead.models import Model

CONFIG = DictionaryConfig(
    d_dict=64, k=4, num_tokens=3000, batch_tokens=50, buffer_tokens=120, passes=2, checkpoint_every=10
)
SITES = ("layers.0.resid_post", "layers.1.resid_post")
SPECS = [
    DictionarySpec("low", SITES[0], CONFIG),
    DictionarySpec("high", SITES[1], CONFIG),
    DictionarySpec("wide", SITES[1], CONFIG.model_copy(update={"d_dict": 96, "k": 2})),
    DictionarySpec("short", SITES[0], CONFIG.model_copy(update={"num_tokens": 1000, "kind": "topk"})),
]


@pytest.fixture(scope="module")
def half(model):
    return Model.wrap(
        LlamaForCausalLM(model.hf.config).to(torch.bfloat16).eval(), model.tokenizer, "in bfloat16"
    )


def same(one, two) -> None:
    for name, value in one.weights.items():
        torch.testing.assert_close(two.weights[name], value, atol=0, rtol=0)


def test_dictionaries_of_one_pass_are_those_made_alone_and_the_model_runs_once(model, rows, monkeypatch):
    passes = []
    real = type(model).capture
    monkeypatch.setattr(
        type(model),
        "capture",
        lambda self, batch, sites, **more: (passes.append(list(sites)), real(self, batch, sites, **more))[1],
    )
    found = train_dictionaries(model, rows, SPECS)
    together = len(passes)
    assert list(found) == [spec.name for spec in SPECS] and all(len(sites) == 2 for sites in passes)
    passes.clear()
    for spec in SPECS:
        same(train_dictionary(model, rows, site=spec.site, config=spec.config), found[spec.name])
    assert together < len(passes) / 2


def test_an_interrupted_pass_goes_on_with_every_dictionary(model, rows, tmp_path, monkeypatch):
    whole = train_dictionaries(model, rows, SPECS)
    real = Trainer.step

    def interrupted(self, batch):
        if self.done == 37 and self.config.d_dict == 96:
            raise KeyboardInterrupt
        real(self, batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_dictionaries(model, rows, SPECS, out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{spec.name}.part" for spec in SPECS}
    monkeypatch.setattr(Trainer, "step", real)
    (
        tmp_path / "high.part" / "training_state.safetensors"
    ).unlink()  # one has to start again, the others wait for it
    found = train_dictionaries(model, rows, SPECS, out=tmp_path)
    for name, dictionary in whole.items():
        same(dictionary, found[name])
    assert {path.name for path in tmp_path.iterdir()} == {spec.name for spec in SPECS}
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("all are finished: they are loaded"))
    same(train_dictionaries(model, rows, SPECS, out=tmp_path)["low"], whole["low"])


def test_dictionaries_that_cannot_share_a_stream_are_named(model, rows):
    other = DictionarySpec("other", SITES[0], CONFIG.model_copy(update={"seed": 3}))
    with pytest.raises(ConfigError, match=r"seed is \[0, 3\].*Next"):
        train_dictionaries(model, rows, [SPECS[0], other])
    with pytest.raises(ConfigError, match="'low'"):
        train_dictionaries(model, rows, [SPECS[0], SPECS[0]])
    with pytest.raises(ConfigError, match="empty"):
        train_dictionaries(model, rows, [])


def test_a_thread_that_harvests_ahead_changes_nothing_and_ends(model, rows):
    before = threading.active_count()
    one, two = (
        train_dictionary(model, rows, config=CONFIG.model_copy(update={"prefetch": flag}))
        for flag in (False, True)
    )
    same(one, two)
    config = CONFIG.sized(32).model_copy(update={"prefetch": True})
    batches = iter_training_batches(ModelSource(model, rows), SITES, config)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_an_error_of_the_harvesting_thread_reaches_the_trainer(model, rows, monkeypatch):
    real, calls = source.Buffer.fill, []

    def broken(self, *words, **more):
        calls.append(1)
        if len(calls) == 2:
            raise DataError("the second chunk")
        real(self, *words, **more)

    monkeypatch.setattr(source.Buffer, "fill", broken)
    with pytest.raises(DataError, match="second chunk"):
        train_dictionary(model, rows, config=CONFIG.model_copy(update={"prefetch": True}))


def test_the_buffer_holds_the_models_dtype_and_is_allocated_once(rows, half):
    config = CONFIG.sized(32).model_copy(update={"num_tokens": 10_000, "prefetch": False})
    batches = iter_training_batches(ModelSource(half, rows), SITES, config)
    places = set()
    for _ in range(40):
        batch = next(batches)
        assert {acts.dtype for acts in batch.values()} == {torch.bfloat16}
        frame = batches.gi_frame
        assert frame is not None
        places |= {buffer.acts[SITES[0]].data_ptr() for buffer in frame.f_locals["buffers"] if buffer.acts}
    assert len(places) <= 2


def test_two_shares_of_a_stream_make_the_whole(model, rows):
    config = CONFIG.sized(32)
    streams = [
        iter_training_batches(ModelSource(model, rows), SITES, config, part=part)
        for part in ((0, 1), (0, 2), (1, 2))
    ]
    for _ in range(20):
        whole, first, second = (next(stream)[SITES[1]] for stream in streams)
        parts = torch.cat([first, second])
        torch.testing.assert_close(
            parts[parts[:, 0].argsort()], whole[whole[:, 0].argsort()], atol=1e-5, rtol=1e-5
        )
        assert len(first) and len(second)


def test_a_store_gives_what_the_model_gives(model, rows, tmp_path, monkeypatch):
    store = ActivationStore.harvest(model, rows, SITES, tmp_path, shard_tokens=60, batch_size=3)
    assert len(list(store.folder.glob("shard-*"))) > 2 and store.num_tokens == sum(map(len, rows))
    seen = 0
    for found in store.iter_tokens([SITES[1]]):
        for row in found.row.unique().tolist():
            here = found.row == row
            alone = next(iter_activations(model, [rows[row]], SITES[1], tokens="all")).acts
            torch.testing.assert_close(found.acts[SITES[1]][here], alone, atol=1e-5, rtol=1e-4)
            assert found.input_ids[here].tolist() == list(rows[row].input_ids)
            assert found.position[here].tolist() == list(range(len(rows[row])))
            seen += 1
    assert seen == len(rows)

    direct = train_dictionary(model, rows, site=SITES[0], config=CONFIG)
    monkeypatch.setattr(type(model), "capture", lambda *_, **__: pytest.fail("the store is read"))
    stored = train_dictionary(model, store, site=SITES[0], config=CONFIG)
    torch.testing.assert_close(stored.decoder, direct.decoder, atol=1e-4, rtol=1e-3)
    assert stored.config["identity"] == direct.config["identity"]
    again = ActivationStore.harvest(model, rows, SITES, tmp_path, shard_tokens=60, batch_size=3)
    assert again.folder == store.folder, "the same harvest is found again"
    with pytest.raises(ConfigError, match=r"layers\.0\.resid_post"):
        train_dictionary(model, store, site="layers.0.mlp_out", config=CONFIG)


def test_a_store_is_finished_where_it_stopped_and_never_mistaken(
    model, other_model, rows, tmp_path, monkeypatch
):
    store = ActivationStore.harvest(model, rows, SITES, tmp_path, shard_tokens=60)
    gone, kept = store.folder / "shard-00001.safetensors", store.folder / "shard-00000.safetensors"
    before, untouched = gone.read_bytes(), kept.stat().st_mtime_ns
    gone.unlink()
    with pytest.raises(DataError, match=r"1 of \d+ shards are missing.*Next"):
        ActivationStore(store.folder)
    again = ActivationStore.harvest(model, rows, SITES, tmp_path, shard_tokens=60)
    assert again.folder == store.folder and gone.read_bytes() == before
    assert kept.stat().st_mtime_ns == untouched
    other = ActivationStore.harvest(other_model, rows, SITES, tmp_path, shard_tokens=60)
    fewer = ActivationStore.harvest(model, rows[:4], SITES, tmp_path)
    assert len({store.folder, other.folder, fewer.folder}) == 3
    with pytest.raises(DataError, match=r"fingerprint.*Next"):
        train_dictionary(model, other, site=SITES[0], config=CONFIG)
    with pytest.raises(DataError, match="no activation store"):
        ActivationStore(tmp_path)
    with pytest.raises(ConfigError, match="empty"):
        ActivationStore.harvest(model, rows, [], tmp_path)
    gone.write_bytes(before[:40])
    with pytest.raises(DataError, match="broken"):
        list(ActivationStore(store.folder).iter_tokens())


def acts(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e4])
def test_a_bad_batch_is_passed_over_and_counted(value):
    config = DictionaryConfig(d_dict=32, k=3, num_tokens=4000, batch_tokens=100).sized(16)
    clean, hit = (Trainer(find_kind("batch_topk"), config, acts(100)) for _ in range(2))
    for number in range(20):
        batch = acts(100, number)
        clean.step(batch)
        hit.step(batch)
        if number == 9:
            before = {name: tensor.clone() for name, tensor in hit.params.items()}
            bad = batch.clone()
            bad[3] = value
            hit.step(bad)
            for name, tensor in before.items():
                torch.testing.assert_close(hit.params[name], tensor, atol=0, rtol=0)
    assert hit.metrics()["skipped"] == 1 and "skipped" not in clean.metrics()
    assert all(tensor.isfinite().all() for tensor in hit.params.values())
    assert hit.metrics()["fvu"] == pytest.approx(clean.metrics()["fvu"], rel=0.05)


def test_bad_parameters_go_back_to_the_last_good_ones_with_a_smaller_step(tmp_path):
    config = DictionaryConfig(
        d_dict=32, k=3, num_tokens=8000, batch_tokens=100, checkpoint_every=5, decay=0.0
    ).sized(16)
    trainer = Trainer(find_kind("batch_topk"), config, acts(100))
    for number in range(10):
        trainer.step(acts(100, number))
    good, rate = trainer.params["W_dec"].clone(), trainer.rate()
    trainer.params["b_dec"] += 1e3
    for number in range(3):
        trainer.step(acts(100, number))
    torch.testing.assert_close(trainer.params["W_dec"], good, atol=0, rtol=0)
    assert trainer.metrics()["restored"] == 1 and trainer.rate() == pytest.approx(rate / 2)
    trainer.step(acts(100, 11))
    assert trainer.bad_in_a_row == 0
    trainer.save_state(tmp_path / "state", "x")
    other = Trainer(find_kind("batch_topk"), config, torch.ones(2, 16))
    other.load_state(tmp_path / "state")
    assert other.restored == 1 and other.skipped == 3 and other.rate() == trainer.rate()
    with pytest.raises(DictionaryError, match="stays at"):
        for _ in range(40):
            trainer.step(torch.full((100, 16), float("nan")))


def test_harvested_rows_are_those_of_the_model(model, rows):
    site = model.resolved.normal(SITES[0])
    found = harvest(model, rows, site, rows=[2, 0])
    first, second = sorted((0, 2), key=lambda row: (-len(rows[row]), row == 0))
    alone = [
        next(iter_activations(model, [rows[row]], SITES[0], tokens="all")).acts[1:] for row in (first, second)
    ]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("passes", [1, 2])
def test_the_last_chunk_holds_what_the_run_still_needs(model, rows, passes):
    tokens = sum(len(row) - 1 for row in rows)
    longest = max(len(row) for row in rows)
    config = CONFIG.sized(32).model_copy(
        update={
            "num_tokens": tokens * 3 // 2,
            "buffer_tokens": tokens,
            "batch_tokens": 10,
            "passes": passes,
            "prefetch": False,
        }
    )
    read: list[int] = []
    batches = iter_training_batches(ModelSource(model, rows), SITES[:1], config, on_harvest=read.append)
    seen = [next(batches)[SITES[0]].clone() for _ in range(config.num_steps)]
    batches.close()
    wanted = tokens if passes > 1 else config.num_steps * 10
    assert wanted <= sum(read) <= wanted + longest + 10, "no more is read than is trained on"
    late = iter_training_batches(ModelSource(model, rows), SITES[:1], config, skip_steps=config.num_steps - 3)
    for expected in seen[-3:]:
        torch.testing.assert_close(next(late)[SITES[0]], expected, atol=1e-5, rtol=1e-4)
    late.close()


def test_a_harvest_in_bfloat16_is_close_and_leaves_the_model_as_it_is(model, rows):
    low, high = (source.Buffer(SITES, sum(len(row) - 1 for row in rows)) for _ in range(2))
    chunk = source.Chunk(0, tuple(range(len(rows))), low.capacity)
    low.fill(ModelSource(model, rows, dtype="bfloat16"), chunk)
    high.fill(ModelSource(model, rows), chunk)
    for site in SITES:
        assert (
            low.acts[site].dtype == torch.bfloat16 and high.acts[site].dtype == model.dtype == torch.float32
        )
        off = (low.acts[site].float() - high.acts[site]).norm() / high.acts[site].norm()
        assert 0 < off < 0.02, f"{site}: relative difference {off:.4f}"
    one, other = (
        train_dictionary(model, rows, config=CONFIG.model_copy(update={"harvest_dtype": dtype}))
        for dtype in ("model", "bfloat16")
    )
    assert other.metrics["fvu"] == pytest.approx(one.metrics["fvu"], rel=0.1)
    assert other.config["identity"] != one.config["identity"], "other activations are another dictionary"


def test_dictionaries_of_one_stream_agree_on_how_it_is_harvested(model, rows):
    specs = [
        DictionarySpec(dtype, SITES[0], CONFIG.model_copy(update={"harvest_dtype": dtype}))
        for dtype in ("model", "bfloat16")
    ]
    with pytest.raises(ConfigError, match="harvest_dtype"):
        train_dictionaries(model, rows, specs)
