"""AutoSteer: from a description to edits, with every trial on record.

1. *Contrast.* The model answers the prompts with the description as its request (system prompt) and without; both sets of answers are
   read with and without the request (`decisions.read_matched`), which gives the parts to edit: start, decisions, later tokens and, to
   turn a behaviour off, the prompt. Concepts that a search of the catalogue finds are tried as well, one by one and together.
2. *Effect.* The share of answers that show the behaviour: by a check where one is given, else by a probe on the answers' activations,
   fitted to tell the requested answers from the plain ones and read in the unedited model; an answer counts where it scores as
   95 % of the requested answers do.
3. *Coherence.* The rise of the unedited model's loss on the edited answers over that on its own: with the request for turning on,
   without it for turning off.
4. *Calibration.* The strength of each part in turn, from a first guess, on prompts that the contrast did not see. Best is the trial that
   reaches the goal with the least loss, else the one with the most effect. A concept from the search wins only where it costs no more
   coherence: at high strength any concept that reads a style has its full effect on the readout, and says nothing else. A placebo of
   equal norm runs beside it.

To turn a behaviour off, the edits can be tied to the condition that the request stands in the prompt, so that nothing changes elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fairlead.concepts.decisions import Matched, Part, find_parts, request_gate
from fairlead.concepts.edits import Condition, Edit, EditSet
from fairlead.concepts.steering_bench import Check, SteeringBench
from fairlead.concepts.steering_report import Direction, SteeringReport, Trial
from fairlead.concepts.strength import usual_strengths
from fairlead.core.progress import track
from fairlead.core.records import Concept
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from fairlead.models import Model

FIRST = {"start": 2.0, "decision": 1.0, "later": 1.0}
STEPS: dict[str, tuple[float, ...]] = {
    "decision": (0.0, 0.5, 1.5, 2.0),
    "later": (0.0, 0.5, 1.5, 2.0),
    "start": (1.0, 1.5, 3.0, 4.0),
}
GOALS = {"on": 0.95, "off": 0.9}
CONCEPT_STEPS = (1.0, 2.0, 4.0, 8.0)
CONTRAST = "contrast"  # name of the contrast's own trials; others are named by their concepts


class AutoSteered(NamedTuple):
    """The edits, and how they were found."""

    edits: EditSet
    report: SteeringReport


def autosteer(
    model: Model,
    dictionary: Dictionary,
    description: str,
    prompts: Sequence[str | Sequence[Any]],
    *,
    direction: Direction = "on",
    requests: Sequence[str] = (),
    check: Check | None = None,
    examples: Sequence[str] | None = None,
    candidates: Sequence[Concept] = (),
    goal: float | None = None,
    max_loss_rise: float = 0.5,
    when: Condition | None = None,
    gated: bool = True,
    num_latents: int = 64,
    max_new_tokens: int = 48,
    batch_size: int = 64,
    seed: int = 0,
) -> AutoSteered:
    """Find edits that turn a behaviour on, or off where a prompt requests it.

    Args:
        model: A chat model that follows instructions.
        dictionary: Of it.
        description: The behaviour as a request: "Talk like a pirate."
        prompts: Questions in which it could show, 16 at least; half for the contrast, half for the calibration.
        direction: "on" or "off".
        requests: More ways to say the description, so that the contrast is about what they share.
        check: Tells from the prompt's place and the answer whether the behaviour shows; a probe on activations where None.
        examples: Answers to the prompts that show the behaviour, one each, for the contrast and the readout; the model's own on request
            where None.
        candidates: Concepts to try besides the contrast, such as those that a search of the catalogue finds.
        goal: Share of answers to reach on the calibration prompts; .95 for on and .9 for off where None.
        max_loss_rise: Nats per token, see the module.
        when: An extra condition for all edits.
        gated: Tie the edits for "off" to the request's being in the prompt.
        num_latents: Per part.
        max_new_tokens: Longest answer.
        batch_size: Prompts at a time.
        seed: Of the placebo.

    Raises:
        ConfigError: Too few prompts, another number of examples, or a model that is not a chat model.
        DictionaryError: The dictionary was made for another model.
    """
    dictionary.check(model)
    work = SteeringBench(
        model,
        dictionary,
        prompts,
        (description, *requests),
        check,
        direction,
        max_new_tokens,
        batch_size,
        examples,
    )
    matched = work.contrast()
    parts = find_parts(matched, turn_on=direction == "on", num_latents=num_latents)
    conditions, right = _conditions(matched, when, direction == "off" and gated)
    goal = GOALS[direction] if goal is None else goal
    tried: list[tuple[Trial, EditSet]] = []

    def attempt(name: str, strengths: dict[str, float], edits: list[Edit]) -> Trial:
        made = EditSet.make(model, dictionary, edits)
        known = next((trial for trial, other in tried if other.edits == made.edits), None)
        if known is not None:
            return known
        trial = Trial(name=name, strengths=strengths, **work.measure(made))
        tried.append((trial, made))
        return trial

    def rank(trial: Trial) -> tuple:
        return rank_trial(trial, goal=goal, max_loss_rise=max_loss_rise)

    def contrast_edits(strengths: dict[str, float]) -> list[Edit]:
        return edits_of(parts, strengths, direction=direction, when=conditions, description=description)

    for name, strengths, made in track(
        list(_concept_trials(work, candidates, direction, conditions)), "concepts"
    ):
        attempt(name, strengths, made)
    strengths = {part.name: FIRST[_kind(part)] for part in parts if part.name != "prompt"}
    best = attempt(CONTRAST, strengths, contrast_edits(strengths))
    for kind, steps in STEPS.items():
        names = [part.name for part in parts if _kind(part) == kind]
        if not names or (direction == "off" and rank(best)[0] and kind == "start"):
            continue
        for value in track(list(steps), f"strength at {kind}"):
            changed = {**strengths, **dict.fromkeys(names, value)}
            trial = attempt(CONTRAST, changed, contrast_edits(changed))
            if rank(trial) > rank(best):
                best = trial
        strengths = dict(best.strengths)
    chosen = choose_trial([trial for trial, _ in tried], goal=goal, max_loss_rise=max_loss_rise)
    edits = tried[chosen][1]
    noise = random_edits(edits, dictionary, seed=seed)
    report = SteeringReport(
        description=description,
        direction=direction,
        requests=tuple(requests),
        goal=goal,
        max_loss_rise=max_loss_rise,
        num_contrast=len(work.contrast_places),
        num_calibration=len(work.places),
        readout_auroc=work.auroc,
        gate=right,
        candidates=tuple(concept.id for concept in candidates),
        trials=tuple(trial for trial, _ in tried),
        chosen=chosen,
        placebo=Trial(name="placebo", strengths=tried[chosen][0].strengths, **work.measure(noise)),
        **work.summary(edits),
    )
    note = f"AutoSteer {direction}: {description}"
    return AutoSteered(edits.model_copy(update={"notes": (note,)}), report)


def rank_trial(trial: Trial, *, goal: float, max_loss_rise: float) -> tuple:
    """A key that is larger for a better trial: those that reach the goal by least loss, others by effect."""
    good = trial.effect >= goal and trial.loss_rise <= max_loss_rise
    return (good, -trial.loss_rise) if good else (good, min(trial.effect, goal), -trial.loss_rise)


def choose_trial(trials: Sequence[Trial], *, goal: float, max_loss_rise: float) -> int:
    """Place of the best trial; a concept's own counts only where it costs no more coherence than the contrast's best, or than allowed."""

    def rank(place: int) -> tuple:
        return rank_trial(trials[place], goal=goal, max_loss_rise=max_loss_rise)

    places = range(len(trials))
    best = max((place for place in places if trials[place].name == CONTRAST), key=rank)
    bound = max(trials[best].loss_rise, max_loss_rise)
    return max((place for place in places if place == best or trials[place].loss_rise <= bound), key=rank)


def edits_of(
    parts: Sequence[Part],
    strengths: dict[str, float],
    *,
    direction: Direction,
    when: tuple[Condition, ...] = (),
    description: str = "",
) -> list[Edit]:
    """Edits of a contrast's parts: added for "on"; subtracted, and the request's latents ablated in the prompt, for "off"."""
    made = []
    for part in parts:
        label = f"{description} ({part.name})"
        if part.name == "prompt":
            if direction == "off":
                made.append(Edit(mode="ablate", latents=part.latents, at="prompt", when=when, label=label))
            continue
        value = strengths.get(part.name, 0.0)
        if value:
            value = value if direction == "on" else -value
            made.append(
                Edit(
                    mode="add",
                    latents=part.latents,
                    weights=part.weights,
                    value=value,
                    at=part.at,
                    when=(*part.when, *when),
                    label=label,
                )
            )
    return made


def random_edits(edits: EditSet, dictionary: Dictionary, *, seed: int) -> EditSet:
    """The placebo: the same modes, places, conditions and norms through random latents with random weights."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for edit in edits.edits:
        pick = torch.randperm(dictionary.d_dict, generator=generator)[: len(edit.latents)]
        changes: dict[str, Any] = {"latents": tuple(pick.tolist()), "concept": "", "label": "random"}
        if edit.weights:
            decoder = dictionary.decoder.float().cpu()
            norm = (torch.tensor(edit.weights) @ decoder[list(edit.latents)]).norm()
            noise = torch.randn(len(pick), generator=generator)
            noise = noise * norm / (noise @ decoder[pick]).norm().clamp_min(1e-12)
            changes["weights"] = tuple(noise.tolist())
        made.append(edit.model_copy(update=changes))
    return edits.model_copy(update={"edits": tuple(made), "notes": ("placebo",)})


def _concept_trials(
    work: SteeringBench, candidates: Sequence[Concept], direction: Direction, when: tuple[Condition, ...]
) -> Iterator[tuple[str, dict[str, float], list[Edit]]]:
    """Each candidate concept on its own and all together: added at several strengths, or ablated."""
    if not candidates:
        return
    sets = [[concept] for concept in candidates] + ([list(candidates)] if len(candidates) > 1 else [])
    usual = usual_strengths(work.model, work.dictionary, candidates) if direction == "on" else {}
    for chosen in sets:
        name = ",".join(concept.id for concept in chosen)
        for value in CONCEPT_STEPS if direction == "on" else (0.0,):
            mode = "add" if direction == "on" else "ablate"
            edits = [
                Edit(
                    mode=mode,
                    latents=concept.latents,
                    weights=usual.get(concept.id, ()),
                    value=value,
                    when=when,
                    concept=concept.id,
                    label=concept.label,
                )
                for concept in chosen
            ]
            yield name, {concept.id: value for concept in chosen}, edits


def _conditions(
    matched: Matched, when: Condition | None, gated: bool
) -> tuple[tuple[Condition, ...], float | None]:
    given = () if when is None else (when,)
    found = request_gate(matched) if gated else None
    return (given, None) if found is None else ((*given, found[0]), found[1])


def _kind(part: Part) -> str:
    return "decision" if part.name.startswith("decision") else part.name
