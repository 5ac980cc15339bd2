"""AutoSteer: from a description to edits, with every trial on record.

1. *Contrast.* The model answers the prompts with the description as its request (system prompt) and without; both sets of answers are
   read with and without the request (`decisions.read_matched`), which gives the parts to edit: start, decisions, later tokens and, to
   turn a behaviour off, the prompt. Concepts that a search of the catalogue finds are tried as well, one by one and together.
2. *Effect.* The share of answers that show the behaviour: by a check where one is given, else by a probe on the answers' activations,
   fitted to tell the requested answers from the plain ones and read in the unedited model.
3. *Coherence.* The rise of the unedited model's loss on the edited answers over that on its own: with the request for turning on,
   without it for turning off.
4. *Calibration.* The strength of each part in turn, from a first guess, on prompts that the contrast did not see. Best is the trial that
   reaches the goal with the least loss, else the one with the most effect. A placebo of equal norm runs beside it.

To turn a behaviour off, the edits can be tied to the condition that the request stands in the prompt, so that nothing changes elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from fairlead.concepts.decisions import Matched, Part, find_parts, read_matched, request_gate
from fairlead.concepts.edits import Condition, Edit, EditSet
from fairlead.concepts.steering import apply_edits, edited_logprobs, mean_loss
from fairlead.concepts.strength import usual_strengths
from fairlead.core.config import Record
from fairlead.core.errors import ConfigError
from fairlead.core.progress import track
from fairlead.core.records import Concept
from fairlead.data import Encoded, Message, Row, encode
from fairlead.dictionaries import Dictionary
from fairlead.probes import Probe, fit_probe, pool_answers

if TYPE_CHECKING:
    from fairlead.models import Model

Check = Callable[[int, str], bool]  # place of the prompt and answer to whether it shows the behaviour
Direction = Literal["on", "off"]
NEUTRAL_REQUESTS = ("You are a helpful assistant.", "Answer the question.", "Please answer the user.")
FIRST = {"start": 2.0, "decision": 1.0, "later": 1.0}
STEPS: dict[str, tuple[float, ...]] = {
    "decision": (0.0, 0.5, 1.5, 2.0),
    "later": (0.0, 0.5, 1.5, 2.0),
    "start": (1.0, 1.5, 3.0, 4.0),
}
CONCEPT_STEPS = (1.0, 2.0, 4.0, 8.0)


class Trial(Record):
    """One setting that was tried.

    Attributes:
        name: "contrast", the concepts' ids, or "placebo".
        strengths: By part.
        effect: Share of answers that show the behaviour (on) or do not (off).
        loss_rise: Nats per token, see the module (3).
    """

    name: str
    strengths: dict[str, float]
    effect: float
    loss_rise: float


class SteeringReport(Record):
    """What AutoSteer tried and chose.

    Attributes:
        effect_before: Without any edit, on the calibration prompts.
        effect_request: With the request in the prompt instead of edits (turning on), the ceiling.
        readout_auroc: Of the probe on held-out answers; None with a check.
        neutral_loss: Nats per token of plain answers to prompts without the request: unedited, edited.
        requested_loss: Nats per token of the requested answers: unedited model with the request; edited model without it (turning on).
        gate: How well the request is told from other prompts, where edits are tied to it.
        chosen: Place in `trials`.
        placebo: Edits of equal norm at the same places through random latents.
    """

    format: Literal["fairlead.steering"] = "fairlead.steering"
    version: Literal[1] = 1
    description: str
    direction: Direction
    requests: tuple[str, ...]
    goal: float
    max_loss_rise: float
    num_contrast: int
    num_calibration: int
    effect_before: float
    effect_request: float
    readout_auroc: float | None = None
    neutral_loss: tuple[float, float]
    requested_loss: tuple[float, float] | None = None
    gate: float | None = None
    candidates: tuple[str, ...] = ()
    trials: tuple[Trial, ...]
    chosen: int
    placebo: Trial
    samples: tuple[tuple[str, str, str], ...] = ()  # prompt, unedited answer, edited answer

    @property
    def best(self) -> Trial:
        """The chosen trial."""
        return self.trials[self.chosen]

    @property
    def reached(self) -> bool:
        """Whether the goal was reached within the allowed rise of the loss."""
        return self.best.effect >= self.goal and self.best.loss_rise <= self.max_loss_rise


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
        candidates: Concepts to try besides the contrast, such as those that a search of the catalogue finds.
        goal: Share of answers to reach; .9 for on and .8 for off where None.
        max_loss_rise: Nats per token, see the module.
        when: An extra condition for all edits.
        gated: Tie the edits for "off" to the request's being in the prompt.
        num_latents: Per part.
        max_new_tokens: Longest answer.
        batch_size: Prompts at a time.
        seed: Of the placebo.

    Raises:
        ConfigError: Too few prompts, or a model that is not a chat model.
        DictionaryError: The dictionary was made for another model.
    """
    dictionary.check(model)
    work = _Bench(
        model, dictionary, prompts, (description, *requests), check, direction, max_new_tokens, batch_size
    )
    matched = work.contrast()
    parts = find_parts(matched, turn_on=direction == "on", num_latents=num_latents)
    conditions, right = _conditions(matched, when, direction == "off" and gated)
    goal = (0.9 if direction == "on" else 0.8) if goal is None else goal
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
        good = trial.effect >= goal and trial.loss_rise <= max_loss_rise
        return (good, -trial.loss_rise) if good else (good, min(trial.effect, goal), -trial.loss_rise)

    def contrast_edits(strengths: dict[str, float]) -> list[Edit]:
        return edits_of(parts, strengths, direction=direction, when=conditions, description=description)

    for name, strengths, made in track(
        list(_concept_trials(work, candidates, direction, conditions)), "concepts"
    ):
        attempt(name, strengths, made)
    strengths = {part.name: FIRST[_kind(part)] for part in parts if part.name != "prompt"}
    best = attempt("contrast", strengths, contrast_edits(strengths))
    for kind, steps in STEPS.items():
        names = [part.name for part in parts if _kind(part) == kind]
        if not names or (direction == "off" and rank(best)[0] and kind == "start"):
            continue
        for value in track(list(steps), f"strength at {kind}"):
            changed = {**strengths, **dict.fromkeys(names, value)}
            trial = attempt("contrast", changed, contrast_edits(changed))
            if rank(trial) > rank(best):
                best = trial
        strengths = dict(best.strengths)
    chosen = max(range(len(tried)), key=lambda place: rank(tried[place][0]))
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


class _Bench:
    """Prompts, the model's own answers with and without the request, and what an edit does to them."""

    def __init__(
        self,
        model: Model,
        dictionary: Dictionary,
        prompts: Sequence[str | Sequence[Any]],
        requests: tuple[str, ...],
        check: Check | None,
        direction: Direction,
        max_new_tokens: int,
        batch_size: int,
    ) -> None:
        from fairlead.data import has_chat_template

        if len(prompts) < 16:
            raise ConfigError(
                f"{len(prompts)} prompts are too few to contrast and calibrate on. Next: pass 16 or more."
            )
        if not has_chat_template(model.tokenizer):
            raise ConfigError(
                f"{model.name} has no chat template, so that nothing can be requested of it. Next: use a chat model."
            )
        self.model, self.dictionary, self.direction = model, dictionary, direction
        self.settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        self.chats = [_messages(prompt) for prompt in prompts]
        places = range(len(prompts))
        self.contrast_places, self.places = places[::2], places[1::2]
        asked = itertools.cycle(requests)
        self.asked_chats = [[Message("system", next(asked)), *chat] for chat in self.chats]
        neutral = itertools.cycle((None, *NEUTRAL_REQUESTS))
        self.neutral_chats = [
            chat if system is None else [Message("system", system), *chat]
            for chat, system in zip(self.chats, neutral, strict=False)
        ]
        self.plain = self._answer(self.chats)
        self.asked = self._answer(self.asked_chats)
        self.auroc: float | None = None
        self.probe: Probe | None = None
        self._check = check
        if check is None:
            self._fit_readout()
        self.base_chats = self.chats if direction == "on" else self.asked_chats
        self.judge_chats, own = (
            (self.asked_chats, self.asked) if direction == "on" else (self.chats, self.plain)
        )
        self.own_loss = self._loss(self.judge_chats, own)

    def _answer(self, chats: Sequence[Any], *, follower: Any = None) -> list[str]:
        return self.model.generate([list(chat) for chat in chats], follower=follower, **self.settings)

    def _encode(self, chats: Sequence[list[Message]], answers: Sequence[str]) -> list[Encoded]:
        rows = [
            Row(messages=(*chat, Message("assistant", answer.strip() or ".")))
            for chat, answer in zip(chats, answers, strict=True)
        ]
        return encode(rows, self.model.tokenizer, max_length=self.model.max_length, on_long="truncate")

    def _at(self, values: Sequence[Any], places: Sequence[int]) -> list[Any]:
        return [values[place] for place in places]

    def _loss(self, chats: Sequence[list[Message]], answers: Sequence[str]) -> float:
        """Of the unedited model, on the calibration prompts (or on as many answers as are given for them)."""
        answers = self._at(answers, self.places) if len(answers) == len(self.chats) else answers
        encoded = self._encode(self._at(chats, self.places), answers)
        return mean_loss(self.model.logprobs(encoded), encoded)

    def _fit_readout(self) -> None:
        """A probe between requested and plain answers of the contrast's prompts, read without the request; scored on the others."""
        sides = []
        for places in (self.contrast_places, self.places):
            chats = self._at(self.chats, places)
            sides.append(
                [
                    pool_answers(
                        self.model, self._encode(chats, self._at(answers, places)), self.dictionary.site
                    )
                    for answers in (self.asked, self.plain)
                ]
            )
        self.probe = fit_probe(*sides[0], site=self.dictionary.site, heldout=0.0)
        self.auroc = self.probe.score(*sides[1])

    def contrast(self) -> Matched:
        """Both sets of answers under both prompts; half of the prompts without the request have another one."""
        places = self.contrast_places
        sides: tuple[list[Encoded], list[Encoded]] = ([], [])
        for answers in (self.plain, self.asked):
            for side, chats in zip(sides, (self.asked_chats, self.neutral_chats), strict=True):
                side.extend(self._encode(self._at(chats, places), self._at(answers, places)))
        return read_matched(self.model, self.dictionary, *sides)

    def shows(self, answers: Sequence[str]) -> list[bool]:
        """Whether each answer to the calibration prompts shows the behaviour."""
        if self._check is not None:
            return [
                bool(self._check(place, answer)) for place, answer in zip(self.places, answers, strict=True)
            ]
        assert self.probe is not None
        encoded = self._encode(self._at(self.chats, self.places), answers)
        return (self.probe(pool_answers(self.model, encoded, self.dictionary.site)) > 0).tolist()

    def effect(self, answers: Sequence[str]) -> float:
        """Share of answers that are as wanted."""
        share = sum(self.shows(answers)) / len(answers)
        return share if self.direction == "on" else 1.0 - share

    def edited(self, edits: EditSet) -> list[str]:
        """Answers to the calibration prompts under edits."""
        with apply_edits(self.model, self.dictionary, edits) as session:
            return self._answer(self._at(self.base_chats, self.places), follower=session)

    def measure(self, edits: EditSet) -> dict[str, float]:
        """Effect and rise of the loss."""
        answers = self.edited(edits)
        return {
            "effect": self.effect(answers),
            "loss_rise": self._loss(self.judge_chats, answers) - self.own_loss,
        }

    def summary(self, edits: EditSet) -> dict[str, Any]:
        """What a report says besides the trials."""
        places = self.places
        base = self.plain if self.direction == "on" else self.asked
        plain = self._encode(self._at(self.neutral_chats, places), self._at(self.plain, places))
        neutral = (
            mean_loss(self.model.logprobs(plain), plain),
            mean_loss(self._logprobs(edits, plain), plain),
        )
        requested = None
        if self.direction == "on":
            texts = self._encode(self._at(self.chats, places), self._at(self.asked, places))
            requested = (self.own_loss, mean_loss(self._logprobs(edits, texts), texts))
        edited = self.edited(edits)
        samples = [
            (self.chats[place][-1].content, base[place], answer)
            for place, answer in list(zip(places, edited, strict=True))[:8]
        ]
        before = self.effect(self._at(base, places))
        return {
            "effect_before": before,
            "effect_request": self.effect(
                self._at(self.asked if self.direction == "on" else self.plain, places)
            ),
            "neutral_loss": neutral,
            "requested_loss": requested,
            "samples": tuple(samples),
        }

    def _logprobs(self, edits: EditSet, encoded: Sequence[Encoded]) -> list[Any]:
        return edited_logprobs(self.model, self.dictionary, edits, encoded)


def _concept_trials(
    work: _Bench, candidates: Sequence[Concept], direction: Direction, when: tuple[Condition, ...]
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


def _messages(prompt: str | Sequence[Any]) -> list[Message]:
    if isinstance(prompt, str):
        return [Message("user", prompt)]
    made = [one if isinstance(one, Message) else Message(one["role"], one["content"]) for one in prompt]
    return [one for one in made if one.role != "system"]
