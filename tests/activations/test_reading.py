"""A store in place of the model, found by tokens; texts packed flat; the hash of a long list without the list."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from fairlead.activations import ActivationStore, StoredModel
from fairlead.core.errors import ConfigError
from fairlead.core.run import sha256_json, sha256_json_list
from fairlead.data import ChatData, Encoded, PackedTexts, Row, collate, encode
from fairlead.models import Model

SITE, OTHER = "layers.1.resid_post", "layers.0.resid_post"


@pytest.fixture(scope="module")
def model(tiny_tokenizer) -> Model:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        initializer_range=0.3,
    )
    return Model.wrap(tf.LlamaForCausalLM(config).eval(), tiny_tokenizer, "tiny")


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    """Texts of 3 to 90 tokens, of which the last is another's beginning."""
    draws = torch.Generator().manual_seed(1)
    found = []
    for index, length in enumerate([3, 70, 12, 90, 5, 30]):
        ids = torch.randint(1, 50, (length,), generator=draws).tolist()
        found.append(Encoded(ids, [place % 3 > 0 for place in range(length)], index, Row(text="")))
    longer = found[3].input_ids[:80]
    return [*found, Encoded(longer, [True] * 80, 6, Row(text=""))]


@pytest.fixture
def store(model, rows, tmp_path) -> ActivationStore:
    return ActivationStore.harvest(model, rows, [SITE], tmp_path, shard_tokens=60)


def test_captures_come_from_the_store_whatever_the_padding_and_the_order(model, rows, store):
    read = StoredModel(model, store)
    chosen = [rows[5], rows[1], rows[6], rows[1]]
    batch = collate(chosen, pad_id=0)
    found, oracle = read.capture(batch, [SITE])[SITE], model.capture(batch, [SITE])[SITE]
    there = batch.attention_mask.bool()
    torch.testing.assert_close(found[there], oracle[there], atol=1e-5, rtol=1e-4)
    assert (read.num_read, read.num_run) == (4, 0)


def test_the_beginning_of_a_text_is_found_and_what_is_not_there_is_run(model, rows, store):
    read = StoredModel(model, store)
    start = Encoded(rows[1].input_ids[:66], [True] * 66, 0, Row(text=""))
    batch = collate([start], pad_id=0)
    torch.testing.assert_close(
        read.capture(batch, [SITE])[SITE], model.capture(batch, [SITE])[SITE], atol=1e-5, rtol=1e-4
    )
    assert read.num_read == 1
    changed = [*rows[1].input_ids[:65], 49 - rows[1].input_ids[65]]
    batch = collate([Encoded(changed, [True] * 66, 0, Row(text=""))], pad_id=0)
    torch.testing.assert_close(read.capture(batch, [SITE])[SITE], model.capture(batch, [SITE])[SITE])
    read.capture(collate(rows[:1], pad_id=0), [SITE, OTHER])
    assert read.num_read == 1 and read.num_run == 2, "another text, another site"
    left = collate(rows[:2], pad_id=0, padding_side="left")
    assert set(read.capture(left, [SITE])) == {SITE} and read.num_run == 4


def test_the_texts_come_back_and_a_store_of_the_first_format_still_reads(model, rows, store):
    def plain(texts):
        return [(row.input_ids, row.loss_mask, row.index) for row in texts]

    assert plain(store.encoded) == plain(rows) and plain(store.encoded[2:4]) == plain(rows[2:4])
    for path in store.folder.glob("shard-*"):
        held = load_file(path)
        del held["loss_mask"]
        save_file(held, path)
    index = json.loads((store.folder / "index.json").read_text())
    del index["masks"]
    (store.folder / "index.json").write_text(json.dumps({**index, "version": 1}))
    old = ActivationStore(store.folder)
    assert [row.input_ids for row in old.encoded] == [row.input_ids for row in rows]
    assert all(all(row.loss_mask) for row in old.encoded)


def test_other_answers_are_another_store(model, rows, store, tmp_path):
    masked = [Encoded(row.input_ids, [False, *row.loss_mask[1:]], row.index, row.row) for row in rows]
    other = ActivationStore.harvest(model, masked, [SITE], tmp_path, shard_tokens=60)
    assert other.folder != store.folder and other.texts == store.texts


def test_packed_texts_are_the_texts(rows):
    packed = PackedTexts(rows)
    assert [(row.input_ids, row.loss_mask, row.index) for row in packed] == [
        (row.input_ids, row.loss_mask, row.index) for row in rows
    ]
    assert list(packed.lengths) == [len(row) for row in rows] and packed[-1].index == 6
    assert packed._ids.nbytes + packed._mask.nbytes == 5 * sum(map(len, rows)), "5 bytes a token"
    with pytest.raises(IndexError):
        packed[7]


def test_packed_texts_encode_as_the_whole_does(tiny_tokenizer):
    data = ChatData([Row(text=" ".join(f"w{i % 9}" for i in range(n % 17 + 2))) for n in range(1100)], "x")
    packed = PackedTexts.encode(data, tiny_tokenizer, max_length=12)
    whole = encode(data, tiny_tokenizer, max_length=12, on_long="truncate")
    assert [(row.input_ids, row.loss_mask) for row in packed] == [
        (row.input_ids, row.loss_mask) for row in whole
    ]


@pytest.fixture(scope="module")
def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(9)} | {"</s>": 9}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="w0"
    )


def test_the_hash_of_a_list_item_by_item_is_that_of_the_list():
    for value in ([], [[1, 2], [3]], [{"b": 1, "a": [None, "\u00e9"]}]):
        assert sha256_json_list(iter(value)) == sha256_json(value)


def test_a_store_names_the_sites_it_has(store):
    with pytest.raises(ConfigError, match="holds"):
        store.check_site(OTHER)
