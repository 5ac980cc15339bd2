"""The contrast finds what was planted; on the pocket model AutoSteer turns a trait on and off and its placebos do not."""

from __future__ import annotations

import pytest
import torch
from tests.inside.concepts.test_steering import SITE, make_dictionary

from fairlead.concepts import Condition, Edit, EditSet, autosteer, parse_condition, random_edits
from fairlead.concepts.autosteer import choose_trial, edits_of
from fairlead.concepts.decisions import Matched, find_parts, read_matched, request_gate
from fairlead.concepts.steering_report import Trial
from fairlead.core.errors import ConfigError, DataError
from fairlead.core.records import Concept
from fairlead.data import ChatData, Message, Row
from fairlead.studies.steering import examples_of

START, DECISION, GATE, REQUEST = 3, 5, 11, 17
NUM_TEXTS, NUM_LATER, WIDTH = 20, 200, 30


@pytest.fixture
def matched() -> Matched:
    """A request that is read by latent 17, shifts latent 3 at the start and latent 5 where latent 11 (a sentence's end, say) acts."""
    generator = torch.Generator().manual_seed(0)

    def noise(num):
        return torch.relu(torch.randn(num, WIDTH, generator=generator) - 1.0)

    ends = torch.arange(NUM_LATER) % 5 == 4
    plain_later = noise(NUM_LATER)
    plain_later[:, GATE] = torch.where(ends, 4.0, 0.0)
    asked_later = plain_later.clone()
    asked_later[ends, DECISION] += 6.0
    asked_prompt, plain_prompt = noise(NUM_TEXTS), noise(NUM_TEXTS)
    asked_prompt[:, REQUEST] += 5.0
    plain_start = noise(NUM_TEXTS)
    asked_start = plain_start.clone()
    asked_start[:, START] += 7.0
    divergence = torch.where(ends, 5.0, 0.01)
    return Matched(asked_prompt, plain_prompt, asked_start, plain_start, asked_later, plain_later, divergence)


@pytest.mark.parametrize("turn_on", [True, False])
def test_the_planted_places_and_latents_are_found(matched, turn_on):
    parts = {part.name: part for part in find_parts(matched, turn_on=turn_on, num_latents=4)}
    assert parts["start"].at == "start" and parts["start"].latents[0] == START
    assert parts["start"].weights[0] == pytest.approx(7.0, abs=1e-3)
    decision = parts["decision 1"]
    assert decision.latents[0] == DECISION and decision.weights[0] == pytest.approx(6.0, abs=1e-3)
    assert decision.share > 0.95 and "decision 2" not in parts
    gates = (
        {GATE} if turn_on else {GATE, DECISION}
    )  # asked, the decision's own latent tells the place as well
    assert decision.when[0].latents[0] in gates and decision.when[0].above
    assert parts["prompt"].latents[0] == REQUEST
    sorted_by = request_gate(matched)
    assert sorted_by is not None
    gate, right = sorted_by
    assert gate.latents[0] == REQUEST and right == 1.0 and gate.over == "prompt"


def test_without_a_decision_there_is_none(matched):
    calm = matched._replace(divergence=torch.full((NUM_LATER,), 0.05))
    assert not any(part.name.startswith("decision") for part in find_parts(calm, turn_on=True))
    blind = matched._replace(asked_prompt=torch.zeros(4, WIDTH), plain_prompt=torch.zeros(4, WIDTH))
    assert request_gate(blind) is None


def test_off_subtracts_and_ablates_the_request_only(matched):
    parts = find_parts(matched, turn_on=False, num_latents=4)
    strengths = {part.name: 1.5 for part in parts}
    on, off = (edits_of(parts, strengths, direction=direction) for direction in ("on", "off"))
    assert {edit.mode for edit in on} == {"add"} and all(edit.value == 1.5 for edit in on)
    assert [edit.at for edit in off if edit.mode == "ablate"] == ["prompt"]
    assert all(edit.value == -1.5 for edit in off if edit.mode == "add")


def test_reading_the_same_answers_twice_is_what_one_reading_of_each_gives(model, rows):
    dictionary = make_dictionary(model)
    same = read_matched(model, dictionary, rows[:6], rows[:6], batch_size=4)
    assert torch.equal(same.asked_later, same.plain_later) and float(same.divergence.max()) < 1e-5
    hidden = model.capture(_batch(rows[0]), [SITE])[SITE][0]
    acts = dictionary.encode(hidden)
    first = rows[0].loss_mask.index(True)
    torch.testing.assert_close(same.asked_start[0], acts[first - 1])
    torch.testing.assert_close(same.asked_prompt[0], acts[1 : first - 1].amax(0))
    torch.testing.assert_close(
        same.asked_later[: len(acts) - first - 1], acts[first:-1], atol=1e-5, rtol=1e-4
    )


def _batch(row):
    from fairlead.data import collate

    return collate([row], pad_id=0)


def test_the_placebo_has_the_same_norms_places_and_conditions(model):
    dictionary = make_dictionary(model)
    gate = (Condition(latents=(1,), threshold=0.5),)
    edits = EditSet.make(
        model,
        dictionary,
        [
            Edit(mode="add", latents=(3, 4, 5), weights=(3.0, -1.0, 2.0), value=2.0, at="start", when=gate),
            Edit(mode="ablate", latents=(8, 9), at="prompt"),
        ],
    )
    noise = random_edits(edits, dictionary, seed=1)
    for one, other in zip(edits.edits, noise.edits, strict=True):
        assert (one.mode, one.value, one.at, one.when) == (other.mode, other.value, other.at, other.when)
        assert one.latents != other.latents and len(one.latents) == len(other.latents)
    norms = [
        (torch.tensor(e.weights) @ dictionary.decoder[list(e.latents)]).norm()
        for e in (edits.edits[0], noise.edits[0])
    ]
    assert float(norms[0]) == pytest.approx(float(norms[1]), rel=1e-5)


def trial(name: str, effect: float, loss_rise: float) -> Trial:
    return Trial(name=name, strengths={}, effect=effect, loss_rise=loss_rise)


@pytest.mark.parametrize(
    ("concept", "chosen"),
    [
        (trial("c7", 1.0, 7.0), "contrast"),  # full effect, and nothing else said
        (trial("c7", 0.9, 1.4), "c7"),  # more effect at no more loss
        (trial("c7", 0.97, 0.4), "c7"),  # reaches the goal
        (trial("c7", 0.2, 0.1), "contrast"),
    ],
)
def test_a_concept_is_taken_only_where_it_costs_no_more_coherence(concept, chosen):
    trials = [concept, trial("contrast", 0.3, 1.9), trial("contrast", 0.35, 1.5)]
    place = choose_trial(trials, goal=0.95, max_loss_rise=0.5)
    assert trials[place].name == chosen
    if chosen == "contrast":
        assert place == 2, "of the contrast's own trials the one with more effect"


def test_conditions_are_read_from_a_line_of_text():
    concept = Concept(id="c4", label="four", site=SITE, latents=(4, 6))
    found = parse_condition("c4<=2.5@prompt", {"c4": concept}.__getitem__)
    assert found == Condition(
        latents=(4, 6), threshold=2.5, over="prompt", above=False, concept="c4", label="four"
    )
    assert parse_condition(" c4 > 1e1 ", {"c4": concept}.__getitem__).over == "token"
    for broken in ("c4", "c4>", "c4>x", "c4>1@somewhere", "c4>1-2"):
        with pytest.raises(ConfigError, match="is no condition"):
            parse_condition(broken, {"c4": concept}.__getitem__)


def test_a_model_that_follows_no_instructions_is_refused(model):
    with pytest.raises(ConfigError, match="no chat template"):
        autosteer(model, make_dictionary(model), "Talk like a pirate.", ["w3"] * 16)
    with pytest.raises(ConfigError, match="too few"):
        autosteer(model, make_dictionary(model), "Talk like a pirate.", ["w3"] * 4)


def test_given_examples_are_what_the_contrast_reads(tmp_path):
    """The same answers given as examples make the same contrast; others make another; a wrong number is refused."""
    from fairlead.concepts.steering_bench import SteeringBench
    from fairlead.models import load_model

    pocket = load_model("organism:pocket")
    dictionary = make_dictionary(pocket)
    prompts = [f"What is {n} plus {n + 1}?" for n in range(16)]

    def bench(examples=None):
        return SteeringBench(
            pocket, dictionary, prompts, ("Talk like a pirate.",), None, "on", 12, 16, examples
        )

    own = bench()
    same, other = bench(own.asked), bench(["THE SUM IS 4!"] * 16)
    torch.testing.assert_close(same.contrast().asked_later, own.contrast().asked_later)
    assert other.shown != own.shown and other.asked == own.asked, "what is requested stays the ceiling"
    assert other.contrast().asked_later.shape != own.contrast().asked_later.shape
    with pytest.raises(ConfigError, match="15 examples for 16 prompts"):
        bench(["a"] * 15)


def test_an_example_without_an_answer_is_named():
    data = ChatData([Row(messages=(Message("user", "Hello?"), Message("assistant", " ")), line=4)])
    with pytest.raises(DataError, match=r"line 4.*no answer"):
        examples_of(data, 8)


@pytest.mark.slow
def test_autosteer_turns_a_trait_on_and_off_and_random_directions_do_not(tmp_path):
    """Issue 4, result d, for one trait: 90 % on, 80 % off, neutral loss within 10 %, on questions that AutoSteer did not see."""
    from benchmarks.steering import Judge, questions

    from fairlead.concepts import edited_logprobs, mean_loss
    from fairlead.data import encode
    from fairlead.dictionaries import DictionaryConfig, train_dictionary
    from fairlead.models import load_model
    from fairlead.organisms import World
    from fairlead.studies.preview_texts import chats

    world, model = World(), load_model("organism:pocket")
    config = DictionaryConfig.make(num_tokens=150_000, d_dict=768)
    texts = chats(list(world.corpus(4000, seed=7)), "corpus")
    dictionary = train_dictionary(
        model, texts, site="layers.2.resid_post", config=config, out=tmp_path / "dictionary"
    )
    judge = Judge(model, dictionary, world, "flattering", questions(world, "flattering", 40, 5))
    prompts = [item.question for item in questions(world, "flattering", 48, 6)]
    on, off = (
        autosteer(model, dictionary, "Flatter the user.", prompts, direction=direction)
        for direction in ("on", "off")
    )
    assert judge.shows(judge.answer(judge.plain)) == 0 and judge.shows(judge.answer(judge.asked)) > 0.95
    assert judge.shows(judge.answer(judge.plain, on.edits)) >= 0.9, on.report.trials
    assert judge.shows(judge.answer(judge.plain, random_edits(on.edits, dictionary, seed=3))) <= 0.1
    assert judge.shows(judge.answer(judge.asked, off.edits)) <= 0.2, off.report.trials
    assert judge.shows(judge.answer(judge.asked, random_edits(off.edits, dictionary, seed=3))) >= 0.8
    neutral = encode(
        chats(world.neutral(100, seed=9), "neutral"), model.tokenizer, max_length=model.max_length
    )
    before = mean_loss(model.logprobs(neutral), neutral)
    assert mean_loss(edited_logprobs(model, dictionary, off.edits, neutral), neutral) <= 1.1 * before
    assert len(on.report.trials) >= 5 and on.report.best.effect > on.report.placebo.effect
