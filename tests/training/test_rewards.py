"""Training by rewards: what is rewarded is learned, the frozen copy stays as it was, resume is exact, monitors do not disturb."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from reward_world import DoubtOf, label, questions, run, settings, split

from fairlead.core.claims import ClaimSpan
from fairlead.core.errors import ConfigError, MissingDependencyError, TrainingError
from fairlead.data.template import encode_prompt
from fairlead.models import load_model
from fairlead.training.rewards import Monitor, Question, Text, read_claims
from fairlead.training.rewards.fit import STEPS_FILE, spread, weights_sha256
from fairlead.training.rewards.grpo import grpo_config
from fairlead.training.rewards.monitors import Look
from fairlead.training.rewards.reading import lay_out
from fairlead.training.rewards.rollout import Rollouts
from fairlead.training.rewards.stopping import WINDOW, why_stop, why_stop_now
from fairlead.training.student import as_model

PLAIN = {"intervention_share": 0.0, "checkpoint_every": 0}


def usual_word(model) -> str:
    """The word that the start model answers s-questions with most often."""
    said = model.generate([q.messages for q in questions(8)] * 8, temperature=1.0, max_new_tokens=5)
    return Counter(word for text in said for word in text.split() if word[0] in "ab").most_common(1)[0][0]


def share_of(model, word: str) -> float:
    said = model.generate([q.messages for q in questions(8)] * 8, temperature=1.0, max_new_tokens=5, seed=9)
    return sum(word in text.split() for text in said) / len(said)


def test_what_the_probe_doubts_becomes_rare_and_without_reward_it_does_not(micro, tmp_path):
    word = usual_word(micro.model)
    readout = DoubtOf(micro.model, word)
    before = weights_sha256(micro.model.hf)
    shares = {}
    for name, weight in (("rewarded", 1.0), ("placebo", 0.0)):
        found = run(
            micro.model,
            readout,
            tmp_path / name,
            steps=25,
            reward_weight=weight,
            kl=0.0,
            monitor_every=0,
            **PLAIN,
        )
        assert found.frozen_sha256 == before == weights_sha256(micro.model.hf), (
            "the frozen copy is left as it was"
        )
        shares[name] = share_of(load_model(tmp_path / name / "model"), word)
    start = share_of(micro.model, word)
    assert shares["rewarded"] < 0.4 * start, f"{word}: {start:.2f} at the start, {shares} afterwards"
    assert shares["placebo"] == start, "without rewards and KL nothing pulls"


def test_the_reference_is_the_start_model_and_its_divergence_is_measured(micro, tmp_path):
    readout = DoubtOf(micro.model, usual_word(micro.model))
    pulled = run(micro.model, readout, tmp_path / "kl", kl=0.05, **PLAIN)
    assert pulled.steps[0].kl == pytest.approx(0.0, abs=1e-6), (
        "before the first step the student is the start model"
    )
    assert all(step.kl is not None and step.kl >= 0 for step in pulled.steps) and pulled.steps[-1].kl > 1e-4
    assert run(micro.model, readout, tmp_path / "free", kl=0.0, steps=1, **PLAIN).steps[0].kl is None
    first, last = pulled.looks[0], pulled.looks[-1]
    assert (first.step, first.kl) == (0, pytest.approx(0, abs=1e-6)) and last.step == 6 and last.kl > 1e-4
    assert first.frozen_score == pytest.approx(first.student_score, abs=1e-6)
    assert first.unsupported is not None and first.right_answers is not None


def test_interventions_are_asked_and_the_moves_of_lambda_recorded(micro, tmp_path):
    readout = DoubtOf(micro.model, usual_word(micro.model))
    found = run(micro.model, readout, tmp_path / "run", intervention_share=1.0, threshold=0.5)
    kinds = Counter(name for step in found.steps for name, num in step.outcomes.items() for _ in range(num))
    assert set(kinds) & {"maintained", "corrected", "retracted"}, kinds
    corrected = [step for step in found.steps if step.outcomes["corrected"] + step.outcomes["retracted"]]
    assert len(found.moves) <= len(corrected) and all(move.by == "mix" for move in found.moves)
    assert found.moves and found.moves[-1].value == pytest.approx(found.steps[-1].retract_lambda)


def test_hints_are_tried_only_where_the_group_does_not(micro):
    tokenizer, size = micro.model.tokenizer, 4
    config = settings(
        hints=("arr matey",), defences=("please {claim}",), hint_share=1.0, intervention_share=0.0
    )
    rollouts = Rollouts(
        micro.model, questions(), config=config, readout=DoubtOf(micro.model, "b1"), splitter=split
    )

    class Trainer:
        state = type("State", (), {"global_step": 3})

        def _generate_single_turn(self, ids, images, fields, size):
            return [list(row) for row in answers], [[-0.5] * len(row) for row in answers]

    def ask(*texts):
        nonlocal answers
        answers = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        found = rollouts(["0"] * size, Trainer())
        assert [row[0] is None for row in found["logprobs"]] == [one.hinted for one in rollouts.settings]
        return tokenizer.batch_decode(found["completion_ids"], skip_special_tokens=True)

    answers: list[list[int]] = []
    assert ask("a1", "a2", "a1", "a3") == ["a1", "a2", "a1", "arr matey"]
    assert [one.hinted for one in rollouts.settings] == [False, False, False, True]
    span = ClaimSpan(start=0, end=2, text="a1", value="a1", score=0.2)
    held = rollouts.settings[0]._replace(before="a1 arr", flagged=span)
    assert rollouts._hint(held, 0, 3, ["I do not know."] * size) == " please a1"
    assert rollouts._hint(held, 0, 3, ["I do not know."] * 3 + ["a1"]) is None
    doubted = held._replace(flagged=span.model_copy(update={"score": 0.9}))
    assert rollouts._hint(doubted, 0, 3, ["I do not know."]) is None
    assert rollouts._hint(doubted, 0, 3, ["a1", "a2"]) == " arr matey"
    plain = held._replace(before="", flagged=None)
    assert rollouts._hint(plain, 0, 3, ["a1", "I do not know."]) is None
    assert rollouts._hint(plain, 0, config.hint_until, ["a1"]) is None


def test_an_interrupted_training_goes_on_to_the_same_steps(micro, tmp_path, monkeypatch):
    readout = DoubtOf(micro.model, usual_word(micro.model))
    common = {"checkpoint_every": 2, "monitor_every": 2, "hints": ("matey",), "threshold": 0.5}
    whole = run(micro.model, readout, tmp_path / "whole", **common)
    from fairlead.training.rewards import scoring

    account = scoring.ProbeReward._account

    def and_break(self, step):
        if step == 5:
            raise KeyboardInterrupt
        account(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(scoring.ProbeReward, "_account", and_break)
        with pytest.raises(KeyboardInterrupt):
            run(micro.model, readout, tmp_path / "cut", **common)
    lines = (tmp_path / "cut" / STEPS_FILE).read_text().splitlines()
    assert len(lines) == 5, "five steps were recorded, the checkpoint has four"
    resumed = run(micro.model, readout, tmp_path / "cut", resume=True, **common)
    strip = [[step.model_copy(update={"seconds": 0.0}) for step in one.steps] for one in (whole, resumed)]
    assert strip[0] == strip[1]
    assert whole.looks == resumed.looks and whole.moves == resumed.moves
    one, two = (load_model(tmp_path / name / "model").hf.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one), "the weights are the same, bit for bit"


def test_monitors_leave_the_training_as_it_is(micro, tmp_path):
    readout = DoubtOf(micro.model, usual_word(micro.model))
    seen = run(micro.model, readout, tmp_path / "seen", monitor_every=1)
    unseen = run(micro.model, readout, tmp_path / "unseen", monitor_every=0, verifier=None)
    assert [s.reward for s in seen.steps] == [s.reward for s in unseen.steps]
    assert [look.step for look in seen.looks] == [0, 1, 2, 3, 4, 5, 6] and len(unseen.looks) == 2
    assert unseen.looks[-1].unsupported is None


def test_frozen_and_student_scores_part_where_only_the_student_moves(micro):
    word = usual_word(micro.model)
    readout, student = DoubtOf(micro.model, word), micro.copy()
    with torch.no_grad():  # other activations: the probe's direction is taken off the student's embedding
        vector = readout.vector / readout.vector.norm()
        table = student.hf.get_input_embeddings().weight
        table -= (table @ vector)[:, None] * vector
    prompt = tuple(encode_prompt(questions()[0].messages, micro.model.tokenizer))
    text = [Text(prompt, word, tuple(split(None, word)))]
    with as_model(micro.model, student.hf) as seen:
        frozen, moved = (read_claims(m, readout, text)[0][0].score for m in (micro.model, seen))
    assert frozen > 0.9 > 0.1 > moved, "a student is read on its own activations, the frozen copy on its own"
    monitor = Monitor(micro.model, readout, questions(8), splitter=split, verifier=label, max_new_tokens=5)
    look = monitor.look(micro.copy(), 0)
    assert look.frozen_score == pytest.approx(look.student_score) and look.kl == pytest.approx(0, abs=1e-6)
    assert why_stop(look, look, settings().stop) is None and monitor.look(student, 1).kl > 0


def test_each_stop_rule_gives_its_reason():
    rule = settings(stop={}).stop
    first = Look(
        step=0, frozen_score=0.6, student_score=0.6, kl=0, entropy=1, claims=1, abstained=0, neutral_loss=1.0,
        unsupported=0.5, right_answers=0.4, fresh_auroc=0.8,
    )  # fmt: skip
    assert why_stop(first, first, rule) is None
    for change, reason in (
        ({"kl": 2.0}, "nats per token from the start"),
        ({"claims": 0.01}, "claims per answer fell"),
        ({"student_score": 0.1}, "part by 0.50"),
        ({"neutral_loss": 1.5}, "neutral text rose by 50%"),
        ({"unsupported": 0.7}, "verifier supports fewer claims: 70% are not, 50% at the start"),
        ({"right_answers": 0.1}, "right answers fell from 40% to 10%"),
        ({"fresh_auroc": 0.5}, "a fresh probe reads the student 0.30 worse"),
    ):
        changed = first.model_copy(update=change)
        assert reason in why_stop(changed, first, rule)
        off = rule.model_copy(update=dict.fromkeys(type(rule).model_fields))
        assert why_stop(changed, first, off) is None
    unmeasured = first.model_copy(update={"unsupported": None, "right_answers": None, "fresh_auroc": None})
    assert why_stop(unmeasured, first, rule) is None and why_stop(first, unmeasured, rule) is None


def test_cheap_rules_hold_at_every_step_over_a_few_of_them():
    rule = settings(stop={}).stop
    assert why_stop_now([0.1] * 20, [1.0] * 20, rule) is None
    assert why_stop_now([0.1] * 19 + [4.0], [1.0] * 20, rule) is None, "one noisy step is no drift"
    assert "rollouts are 1.50 nats" in why_stop_now([0.1] * 15 + [1.5] * WINDOW, [1.0] * 20, rule)
    assert why_stop_now([None] * 20, [1.0] * 20, rule) is None
    fallen = [1.0] * 15 + [0.05] * WINDOW
    assert "claims per plain answer fell from 1.00 to 0.05" in why_stop_now([0.1] * 20, fallen, rule)
    assert why_stop_now([0.1] * 20, [None] * 20, rule) is None, "interventions alone tell nothing of it"
    assert why_stop_now([0.1] * 9, [1.0] * 4 + [0.0] * 5, rule) is None, "a start of five steps comes first"


def test_a_training_stops_between_looks_and_is_looked_at_then(micro, tmp_path):
    readout = DoubtOf(micro.model, usual_word(micro.model))
    found = run(
        micro.model, readout, tmp_path / "run", steps=20, kl=0.001, stop={"max_kl": 1e-6}, monitor_every=0
    )
    assert "nats per token from the start" in found.stopped and len(found.steps) == WINDOW
    assert [look.step for look in found.looks] == [0, WINDOW], "the end is looked at wherever it is"


def test_a_stop_rule_ends_the_training_and_says_why(micro, tmp_path):
    readout = DoubtOf(micro.model, usual_word(micro.model))
    found = run(micro.model, readout, tmp_path / "run", stop={"max_kl": 1e-9}, monitor_every=2)
    assert "nats per token" in found.stopped and len(found.steps) == 2
    assert load_model(tmp_path / "run" / "model").fingerprint


def test_scores_do_not_depend_on_the_batch_and_are_those_of_the_text_alone(micro):
    readout, tokenizer = DoubtOf(micro.model, "b1"), micro.model.tokenizer
    texts = []
    for k, answer in enumerate(("b1", "a1 b1 b2 a3", "a2", "")):
        prompt = tuple(encode_prompt(questions()[k].messages, tokenizer))
        texts.append(Text(prompt, answer, tuple(split(None, answer))))
    together = read_claims(micro.model, readout, texts)
    alone = [read_claims(micro.model, readout, [text])[0] for text in texts]
    assert [[c.score for c in row] for row in together] == [
        pytest.approx([c.score for c in row], abs=1e-6) for row in alone
    ]
    assert together[1][1].score > 0.9 > 0.1 > together[2][0].score
    batch, spans = lay_out(micro.model, texts[1:2])
    words = [tokenizer.decode(batch.input_ids[0, s.start : s.end]).strip() for s in spans]
    assert words == [c.text for c in texts[1].claims], "each span holds the tokens of its claim"


def test_dense_advantages_are_trls_own_for_answers_of_one_claim():
    from fairlead.training.rewards.advantages import dense_advantages
    from fairlead.training.rewards.rollout import Setting
    from fairlead.training.rewards.scoring import Scored
    from fairlead.training.rewards.table import Verdict

    def scored(rewards, spans, *, hinted=False):
        claims = tuple(ClaimSpan(start=0, end=1, text="x", score=0.5) for _ in rewards)
        setting = Setting(questions()[0], (1,), hinted=hinted)
        text = Text((1,), "x", claims)
        return Scored(setting, text, claims, Verdict("answered", sum(rewards), tuple(rewards)), tuple(spans))

    config = settings(groups=1, group_size=4)
    rows = [scored([r], [(1, 3)]) for r in (0.8, -0.4, 0.1, 0.5)]
    whole = torch.tensor([0.8, -0.4, 0.1, 0.5])
    trl = (whole - whole.mean()) / (whole.std() + 1e-4)
    dense = dense_advantages(rows, trl, width=4, config=config)
    assert torch.allclose(dense, trl[:, None].expand(4, 4), atol=1e-6)
    mixed = [scored([0.9, -0.9], [(0, 2), (2, 4)]), *rows[1:]]
    dense = dense_advantages(mixed, trl, width=4, config=config)
    assert dense[0, 0] > 0 > dense[0, 3], "the good and the bad claim of one answer are told apart"
    hinted = [scored([-0.9], [(0, 4)], hinted=True), *rows[1:]]
    assert dense_advantages(hinted, -trl.abs(), width=4, config=config)[0].min() >= 0, (
        "a hint is never learned away from"
    )


def test_unsafe_setups_have_to_be_named_in_full_and_say_so(micro, tmp_path):
    readout = DoubtOf(micro.model, usual_word(micro.model))
    with pytest.raises(ConfigError, match="teaches the student to hide"):
        settings(probe_loss=1.0)
    with pytest.raises(ConfigError, match="setup"):
        settings(setup="probe_on_student")
    with pytest.raises(ConfigError, match="needs a weight"):
        run(micro.model, readout, tmp_path / "none", setup="unsafe_gradient_through_probe")
    safe = run(micro.model, readout, tmp_path / "safe", **PLAIN)
    assert safe.notes == ()
    unsafe = run(
        micro.model,
        readout,
        tmp_path / "unsafe",
        setup="unsafe_gradient_through_probe",
        probe_loss=20.0,
        reward_weight=0.0,
        steps=15,
        kl=0.0,
        **PLAIN,
    )
    assert "hide from the probe" in unsafe.notes[0]
    gap = unsafe.looks[-1].frozen_score - unsafe.looks[-1].student_score
    assert gap > 0.1, f"the gradient moves the student's activations off the probe ({gap:.3f}), not its text"
    assert abs(safe.looks[-1].frozen_score - safe.looks[-1].student_score) < gap


def test_rollouts_by_vllm_are_one_setting(micro, tmp_path, monkeypatch):
    from importlib import import_module

    config = settings(rollouts="vllm", vllm_mode="server")
    with pytest.raises(MissingDependencyError, match=r"pip install 'fairlead\[vllm\]'"):
        grpo_config(micro.model.hf, config, tmp_path)
    monkeypatch.setattr(import_module("trl.import_utils"), "is_vllm_available", lambda *a, **k: True)
    made = grpo_config(micro.model.hf, config, tmp_path)
    assert made.use_vllm and made.vllm_mode == "server"
    assert not grpo_config(micro.model.hf, settings(), tmp_path).use_vllm


def test_too_few_questions_are_refused(micro, tmp_path):
    readout = DoubtOf(micro.model, "b1")
    with pytest.raises(TrainingError, match="a step asks 4 questions, the data hold 2"):
        run(micro.model, readout, tmp_path / "few", asked=questions(2))


def test_lora_trains_an_adapter_and_leaves_the_start_model_whole(micro, tmp_path):
    readout, before = DoubtOf(micro.model, usual_word(micro.model)), weights_sha256(micro.model.hf)
    found = run(
        micro.model, readout, tmp_path / "lora", method="lora", lora_rank=4, lr=1e-2, steps=4, kl=0.05
    )
    assert found.frozen_sha256 == before == weights_sha256(micro.model.hf)
    assert json.loads((tmp_path / "lora" / "adapter" / "adapter_config.json").read_text())["r"] == 4
    assert found.steps[0].kl == pytest.approx(0.0, abs=1e-6) and found.looks[-1].kl > 0


def test_the_monitors_ask_from_all_over_the_file():
    asked = [Question(str(place), ({"role": "user", "content": str(place)},)) for place in range(100)]
    assert [one.id for one in spread(asked, 4)] == ["0", "25", "50", "75"]
    assert len(spread(asked[:3], 4)) == 3 and spread(asked, 0) == []
