"""The same trainer on an encoder of words and on a model of proteins: read as they were trained, with labels of any kind."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fairlead.cli.app import run
from fairlead.core.errors import DataError
from fairlead.models import Model
from fairlead.probes import Example, Stretch, fit_span_probe
from fairlead.probes.encoding import encode_for, encode_prompt_and_text
from fairlead.probes.harvesting import harvest
from fairlead.probes.labelled import load_examples
from fairlead.probes.reading import make_reading
from fairlead.probes.scoring import score_texts
from fairlead.studies.probes import evaluate_probe, fit_probes

SITE = "layers.1.resid_post"
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
RESIDUES = "LAGVSERTIDPKQNFYMHWC"


@pytest.fixture(scope="module")
def encoder() -> Model:
    """A tiny random BERT whose tokenizer writes [CLS] text [SEP]."""
    vocab = {w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{k}" for k in range(20))])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    torch.manual_seed(0)
    config = tf.BertConfig(vocab_size=len(vocab), max_position_embeddings=32, pad_token_id=0, **SMALL)
    return Model.wrap(tf.BertForMaskedLM(config).eval(), tokenizer, "tiny-bert")


@pytest.fixture(scope="module")
def protein(tmp_path_factory) -> Model:
    """A tiny random ESM with its own tokenizer, which is none of the fast ones."""
    vocab = tmp_path_factory.mktemp("esm") / "vocab.txt"
    vocab.write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, "<mask>"]))
    tokenizer = tf.EsmTokenizer(str(vocab))
    assert not tokenizer.is_fast
    torch.manual_seed(0)
    config = tf.EsmConfig(
        vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=1, mask_token_id=24,
        position_embedding_type="rotary", **SMALL,
    )  # fmt: skip
    return Model.wrap(tf.EsmForMaskedLM(config).eval(), tokenizer, "tiny-esm")


def texts(num: int = 60) -> list[tuple[str, list[tuple[int, int]]]]:
    """Texts of eight words and the places of those below w10, which stand for names."""
    rng, found = random.Random(0), []
    for _ in range(num):
        words = [f"w{rng.randrange(20)}" for _ in range(8)]
        starts = [sum(len(w) + 1 for w in words[:k]) for k in range(8)]
        names = [(s, s + len(w)) for s, w in zip(starts, words, strict=True) if len(w) == 2]
        found.append((" ".join(words), names))
    return found


@pytest.fixture
def names_file(tmp_path):
    """Personal data as it is annotated: the positive spans and nothing else."""
    lines = [
        {"text": text, "spans": [{"start": a, "end": b, "label": "NAME"} for a, b in names]}
        for text, names in texts()
    ]
    path = tmp_path / "names.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_text_outside_the_spans_is_negative_where_tokens_are_asked_for(names_file):
    with pytest.raises(DataError, match="--tokens"):
        load_examples(names_file, positive="NAME")
    examples = load_examples(names_file, positive="NAME", tokens=True)
    assert all(e.token_level for e in examples)
    for example, (text, names) in zip(examples, texts(), strict=True):
        assert [(s.start, s.end) for s in example.stretches if s.label] == names
        assert "".join(text[s.start : s.end] for s in example.stretches) == text


def test_an_encoder_is_read_between_its_special_tokens(encoder):
    text = "w3 w12 w7"
    found = encode_for(encoder, (), text)
    assert found.encoded.input_ids == encoder.tokenizer(text)["input_ids"]
    assert found.encoded.loss_mask == [False, True, True, True, False] and found.start == 1
    both = encode_for(encoder, ({"role": "user", "content": "w1 w2"},), text)
    assert both.encoded.input_ids == encoder.tokenizer("w1 w2", text)["input_ids"]
    example = Example(id="x", response=text, stretches=(Stretch(start=3, end=6, label=True),))
    read = harvest(encoder, [example], make_reading(encoder, (SITE,), confidence=False))
    with torch.no_grad():
        states = encoder.hf(**encoder.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    torch.testing.assert_close(read.spans.features[0][0], states.hidden_states[2][0, 2])
    short = encode_prompt_and_text((), text, encoder.tokenizer, max_length=4, between_specials=True)
    assert short.encoded.input_ids == encoder.tokenizer("w3 w12")["input_ids"], (
        "a text that is cut keeps its end"
    )


def test_names_are_found_by_an_encoder_and_a_lora_probe_needs_no_confidence(encoder, names_file, tmp_path):
    found = fit_probes(encoder, names_file, out=tmp_path / "run", positive="NAME", tokens=True)
    record = found.records["linear"]
    assert record["auroc"] > 0.9 > 0.7 > record["baselines"]["shuffled"]["auroc"], (
        "a random BERT knows its words"
    )
    assert found.probe.name == "NAME"
    again = evaluate_probe(
        encoder, found.folder / "probe", names_file, out=tmp_path / "again", positive="NAME", tokens=True
    )
    assert again.records["linear"]["auroc"] == pytest.approx(record["auroc"])
    examples = load_examples(names_file, positive="NAME", tokens=True)
    lora = fit_span_probe(
        encoder, examples, name="NAME", kind="lora", rank=2, lora_epochs=1, sites=(SITE,)
    ).probe
    assert lora.reading.lens is None and lora.metrics["auroc"] > 0.7


def test_residues_of_a_protein_are_located_and_read(protein, tmp_path):
    rng, examples = random.Random(1), []
    for k in range(60):
        sequence = "".join(rng.choice(RESIDUES) for _ in range(12))
        stretches = tuple(Stretch(start=i, end=i + 1, label=c in "CHW") for i, c in enumerate(sequence))
        examples.append(Example(id=str(k), response=sequence, stretches=stretches))
    code = encode_for(protein, (), examples[0].response)
    assert code.encoded.input_ids == protein.tokenizer(examples[0].response)["input_ids"]
    assert code.offsets == tuple((i, i + 1) for i in range(12)) and code.start == 1
    probe = fit_span_probe(protein, examples, name="site", sites=(SITE,)).probe
    assert probe.metrics["auroc"] > 0.9
    (scored,) = score_texts(protein, probe, examples[:1])
    assert scored.tokens == tuple(examples[0].response)


def test_tokens_that_are_not_literally_in_the_text_are_named():
    tokenizer = SimpleNamespace(is_fast=False, tokenize=lambda text: ["ab", "##c"])
    with pytest.raises(DataError, match=r"'##c' is not literally in the text at 'c'"):
        encode_prompt_and_text((), "abc", tokenizer, max_length=8)  # type: ignore[arg-type]


def test_the_command_reads_tokens(encoder, names_file, tmp_path, capsys):
    encoder.save(tmp_path / "bert")
    words = [
        "probe",
        "fit",
        str(tmp_path / "bert"),
        str(names_file),
        "--positive",
        "NAME",
        "--out",
        str(tmp_path / "out"),
    ]
    assert run([*words, "--json"]) == 2 and "--tokens" in capsys.readouterr().err
    assert run([*words, "--tokens", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kinds"]["linear"]["auroc"] > 0.9
