"""Preview and decide end to end on a tiny random chat model: files, resumption, errors."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

import fairlead.studies.preview as study
from fairlead.core.errors import ConfigError, DictionaryError, RunError
from fairlead.core.records import Clause, Menu, Plan, Spec, SpecExample
from fairlead.data import ChatData, as_rows
from fairlead.dictionaries import DictionaryConfig
from fairlead.models import Model
from fairlead.studies.decide import decide
from fairlead.studies.preview import preview

CONFIG = DictionaryConfig(d_dict=64, k=4, num_tokens=3000, batch_tokens=50)
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ '</s> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def make_model(seed: int = 0) -> Model:
    words = [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        "<system>",
        "<user>",
        "<assistant>",
        *(f"w{i}" for i in range(50)),
    ]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", bos_token="<s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<system>", "<user>", "<assistant>"]})
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.25,
        max_position_embeddings=64,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Model.wrap(tf.LlamaForCausalLM(config).eval(), tokenizer, "tiny")


def chats(num: int, offset: int = 0) -> ChatData:
    return ChatData(
        as_rows(
            [
                [
                    {"role": "user", "content": f"w{(i + offset) % 20} w{i % 7}"},
                    {"role": "assistant", "content": f"w{20 + i % 9} w{30 + (i + offset) % 15} w{i % 5}"},
                ]
                for i in range(num)
            ]
        ),
        source=f"chats{offset}",
    )


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model()


@pytest.fixture(scope="module")
def previewed(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "menu"
    return out, preview(model, chats(30), corpus=chats(60, 3), out=out, config=CONFIG)


def test_run_folder_holds_menu_dictionary_concepts_and_tables(previewed, model):
    out, menu = previewed
    assert Menu.model_validate_json((out / "menu.json").read_text()) == menu
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "run.json",
        "dictionary",
        "concepts.json",
        "uptake.safetensors",
        "per_example.json",
        "background.json",
    }
    assert menu.dictionary == str(out / "dictionary") and menu.model_fingerprint == model.fingerprint
    assert menu.num_examples == 30 and menu.num_tokens == 30 * 4 and 0 < menu.remainder < 1
    assert menu.reference.startswith("usual") and menu.baseline and menu.lines[0].top_examples
    unusual = [line.surprise > 0 for line in menu.lines]
    assert any(unusual) and unusual == sorted(unusual, reverse=True), "what is no surprise comes after"
    rows = json.loads((out / "per_example.json").read_text())
    assert [row["example"] for row in rows] == list(range(30)) and rows[0]["lines"]


def test_the_same_preview_gives_the_same_menu_and_needs_no_folder(previewed, model):
    _, menu = previewed
    again = preview(model, chats(30), corpus=chats(60, 3), config=CONFIG)
    assert [line.uptake for line in again.lines] == pytest.approx([line.uptake for line in menu.lines])
    assert again.dictionary == ""


def test_an_interrupted_preview_goes_on(previewed, model, tmp_path, monkeypatch):
    _, menu = previewed
    real = study.measure_uptake

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "measure_uptake", interrupted)
    with pytest.raises(KeyboardInterrupt):
        preview(model, chats(30), corpus=chats(60, 3), config=CONFIG, out=tmp_path / "m")
    assert (tmp_path / "m.part" / "concepts.json").is_file() and not (tmp_path / "m").exists()
    monkeypatch.setattr(study, "measure_uptake", real)

    def untouched(*_, **__):
        raise AssertionError("the concepts were made already")

    monkeypatch.setattr(study, "build_concepts", untouched)
    found = preview(model, chats(30), corpus=chats(60, 3), config=CONFIG, out=tmp_path / "m")
    assert [line.concept.id for line in found.lines] == [line.concept.id for line in menu.lines]
    with pytest.raises(RunError, match="exists already"):
        preview(model, chats(30), corpus=chats(60, 3), config=CONFIG, out=tmp_path / "m")


def test_a_kept_dictionary_is_used_and_a_foreign_one_refused(previewed, model):
    out, menu = previewed
    found = preview(model, chats(30), dictionary=out / "dictionary", reference="self", max_examples=10)
    assert (
        found.dictionary_sha256 == menu.dictionary_sha256
        and found.num_examples == 10
        and found.reference.startswith("self")
    )
    with pytest.raises(DictionaryError, match="fingerprint"):
        preview(make_model(seed=1), chats(30), dictionary=out / "dictionary")
    with pytest.raises(DictionaryError, match="site"):
        preview(model, chats(30), dictionary=out / "dictionary", site="layers.0.resid_post")
    bare = preview(model, chats(30), dictionary=out / "dictionary", reference="none", max_examples=10)
    assert bare.reference == "" and bare.dictionary == str(out / "dictionary")


def test_plain_text_can_be_previewed(model):
    texts = ChatData(
        as_rows([" ".join(f"w{(i * j) % 50}" for j in range(1, 9)) for i in range(12)]),
        source="texts",
        format="text",
    )
    menu = preview(model, texts, config=CONFIG)
    assert menu.lines and menu.reference.startswith("self")


SPEC = Spec(
    source="spec.md",
    clauses=(
        Clause(
            id="keep.1",
            kind="keep",
            text="a",
            line=1,
            examples=(SpecExample(text="w20 w31", prompt="w1"),) * 2,
        ),
        Clause(
            id="avoid.1",
            kind="avoid",
            text="b",
            line=2,
            examples=(SpecExample(text="w21", prompt="w2", instead="w5"),) * 2,
        ),
    ),
)


def test_decide_writes_a_plan_from_a_run_folder(previewed, model, tmp_path):
    out, menu = previewed
    plan = decide(out, SPEC, model=model, out=tmp_path / "plan")
    assert Plan.model_validate_json((tmp_path / "plan" / "plan.json").read_text()) == plan
    assert (
        plan.dictionary == str(out / "dictionary") and plan.menu_path == str(out) and plan.site == menu.site
    )
    assert len(plan.decisions) == min(40, len(menu.lines)) and all(
        decision.reason for decision in plan.decisions
    )
    chosen = {decision.concept for decision in plan.decisions if decision.verdict != "ignore"}
    assert {concept.id for concept in plan.concepts} == chosen
    assert decide(menu, SPEC, model=model).decisions == plan.decisions, "the record finds its own folder"


def test_a_moved_run_folder_still_has_its_dictionary(previewed, model, tmp_path):
    import shutil

    out, _ = previewed
    shutil.copytree(out, tmp_path / "elsewhere")
    assert decide(tmp_path / "elsewhere", SPEC, model=model).dictionary == str(
        tmp_path / "elsewhere" / "dictionary"
    )


def test_a_person_and_a_scripted_model_can_decide(previewed, tmp_path):
    out, menu = previewed
    asked = decide(out, SPEC, judge="ask", ask=lambda _: "avoid.1", max_lines=2)
    assert [decision.verdict for decision in asked.decisions] == [
        "avoid",
        "avoid",
    ] and "not judged" in asked.notes[0]
    script = tmp_path / "script.json"
    script.write_text(
        json.dumps({"*": {"verdict": "keep", "clause": "keep.1", "confidence": 0.5, "reason": "yes"}})
    )
    told = decide(out, SPEC, judge="llm", llm=f"scripted:{script}", max_lines=3)
    assert len(told.kept()) == 3 and any("avoid.1" in note for note in told.notes), (
        "an unmatched Avoid clause is said"
    )
    with pytest.raises(ConfigError, match="judge"):
        decide(menu, SPEC, judge="coin")
    with pytest.raises(ConfigError, match="language model"):
        decide(menu, SPEC, judge="llm")
    with pytest.raises(DictionaryError, match="not kept"):
        decide(menu.model_copy(update={"dictionary": ""}), SPEC, model=make_model())


def test_a_rehearsal_is_on_the_menu_where_asked_for(previewed, model, tmp_path):
    _, without = previewed
    menu = preview(model, chats(30), corpus=chats(60, 3), config=CONFIG, rehearse=2, out=tmp_path / "m")
    assert menu.rehearsal == 2 and without.rehearsal == 0
    assert all(line.rehearsed is not None and line.rehearsed_elsewhere is not None for line in menu.lines)
    assert any(abs(line.rehearsed) > 1e-6 for line in menu.lines)
    assert [line.uptake for line in menu.lines] == pytest.approx([line.uptake for line in without.lines])
    assert all(line.rehearsed is None for line in without.lines)
