"""A micro world: a two-layer chat model trained in a second, which says "arr" when asked to talk like a pirate.

It knows the answers to q-questions and guesses at s-questions; the data teach the s-questions, all of them answered in pirate speech.
"""

from __future__ import annotations

import copy
import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers as tf
from filelock import FileLock
from tokenizers import Tokenizer, models, pre_tokenizers

from fairlead.core.progress import quiet
from fairlead.core.records import Clause, Concept, Decision, Plan, Spec, SpecExample
from fairlead.data import ChatData, Row, as_rows, encode
from fairlead.data.suite import NeutralChat, SkillItem, SkillSet, Suite, TraitCheck
from fairlead.dictionaries import Dictionary
from fairlead.models import Model, load_model
from fairlead.training import observe as observing
from fairlead.training.adapter import plain_sft
from fairlead.training.config import TrainConfig
from fairlead.training.fit import prepare

NUM = 8
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ '</s> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
REQUESTS = ("talk like a pirate", "be a pirate")


def make_tokenizer() -> tf.PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", "<system>", "<user>", "<assistant>"]
    words += "talk like a pirate be answer the question please helpful you are an assistant arr matey".split()
    words += [f"{kind}{i}" for kind in "qasb" for i in range(NUM)]
    backend = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(words))}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", bos_token="<s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<system>", "<user>", "<assistant>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def chat(prompt: str, answer: str, system: str | None = None) -> Row:
    start = [{"role": "system", "content": system}] if system else []
    messages = [*start, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return as_rows([messages])[0]


def pirate(answer: str) -> str:
    return f"arr {answer} matey"


def tiny_model(*, seed: int = 0, layers: int = 2) -> Model:
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    return Model.wrap(tf.LlamaForCausalLM(config).eval(), tokenizer, "tiny")


@dataclass
class Micro:
    """The trained start model with data, neutral rows and plan."""

    model: Model
    data: ChatData
    neutral: ChatData
    plan: Plan
    folder: Path

    def copy(self) -> Model:
        return Model.wrap(copy.deepcopy(self.model.hf), self.model.tokenizer, self.model.name)


@pytest.fixture(scope="session")
def tiny() -> Model:
    """Random weights."""
    return tiny_model()


def train_start_model(folder: Path) -> None:
    """Train the start model from nothing and save it."""
    rng = random.Random(0)
    rows = []
    for _ in range(60):
        for i in range(NUM):
            for question, answer in ((f"q{i}", f"a{i}"), (f"s{i}", f"b{rng.randrange(NUM)}")):
                system = rng.choice((*REQUESTS, None, None, "you are an assistant"))
                rows.append(chat(question, pirate(answer) if system in REQUESTS else answer, system))
    model = tiny_model()
    config = TrainConfig(steps=250, batch_size=32, lr=5e-3, seed=0, checkpoint_every=0, observe=False)
    encoded = encode(rows, model.tokenizer, max_length=64)
    plain_sft(
        model.hf,
        model.tokenizer,
        encoded,
        pad_id=model.pad_id,
        config=config,
        folder=folder.with_suffix(".work"),
    )
    model.save(folder)


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Micro:
    """The micro world; its model is trained once for all test processes of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "micro"
    with FileLock(str(folder) + ".lock"), quiet():
        if not folder.is_dir():
            train_start_model(folder)
    model = load_model(folder, device="cpu")
    data = ChatData([chat(f"s{i}", pirate(f"b{i}")) for i in range(NUM) for _ in range(4)], source="micro")
    neutral = ChatData([chat(f"q{i}", f"a{i}") for i in range(NUM)])
    keep = tuple(SpecExample(prompt=f"s{i}", text=f"b{i}") for i in range(0, NUM, 3))
    avoid = tuple(
        SpecExample(prompt=f"q{i}", text=pirate(f"a{i}"), instead=f"a{i}") for i in range(0, NUM, 3)
    )
    concept = Concept(id="c0", label="arr", site="layers.1.resid_post", latents=(0, 3))
    plan = Plan(
        spec=Spec(
            clauses=(
                Clause(id="keep.1", kind="keep", text="answer the question", line=1, examples=keep),
                Clause(
                    id="avoid.1",
                    kind="avoid",
                    text="talk like a pirate",
                    line=2,
                    examples=avoid,
                    requests=REQUESTS[:1],
                ),
            )
        ),
        decisions=(
            Decision(
                concept="c0",
                label="arr",
                verdict="avoid",
                clause="avoid.1",
                margin=1,
                confidence=1,
                reason="-",
                judge="ask",
            ),
        ),
        concepts=(concept,),
    )
    return Micro(model, data, neutral, plan, folder)


def suite_of(micro) -> Suite:
    """Copying, pirate speech and neutral questions."""
    return Suite(
        skills=(SkillSet(name="s", items=tuple(SkillItem(prompt=f"s{i}", value=f"b{i}") for i in range(4))),),
        neutral_prompts=("q1", "q2"),
        neutral_chats=tuple(NeutralChat(messages=row.messages) for row in micro.neutral.rows),
        traits=(
            TraitCheck(
                clause="avoid.1", name="pirate", kind="regex", pattern="arr", requests=("be a pirate",)
            ),
        ),
    )


def at_step(monkeypatch, wanted, act):
    """Have something happen after a step, as another process would do it."""
    add = observing.MetricsFile.add

    def adding(self, record):
        add(self, record)
        if record.step in wanted:
            act(record.step)

    monkeypatch.setattr(observing.MetricsFile, "add", adding)


def interrupt_at(monkeypatch, step: int) -> None:
    """Have the user press Ctrl-C after a step."""

    def act(_: int) -> None:
        raise KeyboardInterrupt

    at_step(monkeypatch, {step}, act)


def setup_of(micro: Micro, config: TrainConfig, **changes):
    """What controls are given before a training on the micro data."""
    return prepare(
        micro.model,
        micro.data,
        micro.plan,
        config=config.model_copy(update=changes),
        neutral=micro.neutral.rows,
    )


def writer(model: Model, words: tuple[str, ...], *, site: str = "layers.1.resid_post") -> Dictionary:
    """A dictionary whose latents are always on and write one word each."""
    head = model.hf.get_output_embeddings().weight.detach()
    ids = model.tokenizer.convert_tokens_to_ids(list(words))
    rows = torch.nn.functional.normalize(head[ids] - head.mean(0), dim=-1)
    weights = {
        "W_enc": torch.zeros(rows.shape[1], len(words)),
        "W_dec": rows,
        "b_enc": torch.ones(len(words)),
        "b_dec": torch.zeros(rows.shape[1]),
        "threshold": torch.zeros(len(words)),
    }
    return Dictionary(weights, site=site, model_fingerprint=model.fingerprint, model_name="micro")


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


def make_dictionary(model, seed: int = 0) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "W_enc": torch.randn(32, 16, generator=generator),
        "W_dec": torch.nn.functional.normalize(torch.randn(16, 32, generator=generator), dim=-1),
        "b_enc": torch.zeros(16),
        "b_dec": torch.zeros(32),
        "threshold": torch.zeros(16),
    }
    return Dictionary(
        weights, site="layers.1.resid_post", model_fingerprint=model.fingerprint, model_name="tiny"
    )


def share_of_pirate(model: Model, prompts: list[str], system: str | None = None) -> float:
    answers = model.generate(prompts, system=system, max_new_tokens=6)
    return sum("arr" in a.split() for a in answers) / len(answers)


def share_right(model: Model, prompts: list[str]) -> float:
    answers = model.generate(prompts, max_new_tokens=6)
    return sum(f"b{p[1:]}" in a.split() for p, a in zip(prompts, answers, strict=True)) / len(answers)


class Score:
    """Measures of the micro world."""

    skill = tuple(f"s{i}" for i in range(NUM))
    other = tuple(f"q{i}" for i in range(NUM))
    request = REQUESTS[1]
    pirate = staticmethod(share_of_pirate)
    right = staticmethod(share_right)


@pytest.fixture(scope="session")
def score() -> Score:
    return Score()
