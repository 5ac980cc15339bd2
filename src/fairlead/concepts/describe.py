"""From a harvest to catalogue entries: examples, labels, scores, effects, neighbours.

Steps: 1. of each concept's harvested stretches choose those to show (top, by quantile of the peak, near misses) and, among the held-out
ones, those to score with; 2. read them once more for activations by token; 3. words and labels from stretches that are not held out;
4. scores on those that are; 5. direct effect on the logits; 6. neighbours by direction and by acting on the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from fairlead.concepts.corpus import MAX_WINDOWS, GroupSums, iter_blocks, read_stretch
from fairlead.concepts.effects import logit_effects
from fairlead.concepts.entries import ConceptStatistics, Entry, Example, ExampleKind, LabelScores
from fairlead.concepts.harvest import Harvest, is_held_out
from fairlead.concepts.labels import NUMBER
from fairlead.concepts.near import nearest_pairs
from fairlead.concepts.scoring import Fuzz, bound_of, make_fuzz, word_detection, word_fuzzing
from fairlead.concepts.words import WordLabel, WordTable, acts_on, is_part, word_label, word_scores
from fairlead.core.progress import track
from fairlead.core.records import Concept, TokenContext
from fairlead.data import Encoded, collate
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from fairlead.models import Model

_FUZZ_TEXTS = 16
_OTHER_TEXTS = 300
_PAIR_STRETCHES = 1500
_WORDS_KEPT = 40
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


class Chosen(NamedTuple):
    """Stretches of one concept by use (numbers), `held_*` being held out from labels."""

    top: list[int]
    quantile: list[int]
    near: list[int]
    shown: list[int]
    other: list[int]
    held_shown: list[int]
    held_other: list[int]
    held_near: list[int]
    prevalence: float


class Described(NamedTuple):
    """What the catalogue file is written from.

    Attributes:
        entries: One per concept.
        examples: Of each concept, by id.
        neighbours: (id, other, cosine, together).
        texts: Searchable texts of each concept.
        evidence: Held-out texts of each concept, for a language model to judge with.
    """

    entries: list[Entry]
    examples: dict[str, list[Example]]
    neighbours: list[tuple[str, str, float, float]]
    texts: dict[str, list[str]]
    evidence: dict[str, Evidence]


class Evidence(NamedTuple):
    """Held-out texts of one concept."""

    shown: list[str]
    other: list[str]
    near: list[str]
    fuzzes: list[Fuzz]


def describe(
    model: Model,
    dictionary: Dictionary,
    corpus: Sequence[Encoded],
    groups: Sequence[Sequence[int]],
    harvest: Harvest,
    *,
    window: int,
    num_examples: int = 8,
    context_tokens: int = 40,
    seed: int = 0,
    label: str | None = "examples",
) -> Described:
    """Describe every concept; see the module for the steps.

    Args:
        groups: Latents of each concept, in the order of the harvest.
        harvest: A finished pass over `corpus`.
        window: Tokens of a stretch, as in the harvest.
        num_examples: Top examples kept; as many by quantile, half as many near misses.
        context_tokens: Longest example shown.
        seed: Of wrong highlightings.
        label: Of the progress display.
    """
    chosen = [choose(harvest, place, num_examples) for place in range(len(groups))]
    pairs = harvest.sample[0][:_PAIR_STRETCHES].tolist()
    scores, together = _read_again(
        model, dictionary, corpus, groups, chosen, pairs, window=window, label=label
    )
    table = WordTable(corpus, model.tokenizer, window)
    rows = [corpus[int(number) // MAX_WINDOWS] for number in pairs[:4]]
    effects = logit_effects(model, harvest.directions, dictionary.site, collate(rows, pad_id=model.pad_id))
    used = sorted({n for c in chosen for part in (c.shown, c.other) for n in part})
    place_of = {number: place for place, number in enumerate(used)}
    matrix = table.matrix(used)
    found = Described([], {}, [], {}, {})
    for place, group in enumerate(groups):
        picks, name = chosen[place], f"c{group[0]}"
        read = {
            n: scores[place, n]
            for n in {*picks.top, *picks.quantile, *picks.held_shown}
            if (place, n) in scores
        }
        examples = _examples(corpus, table, picks, read, num_examples, window, context_tokens)
        worded = _label(harvest, place, picks, table, matrix, place_of, read, corpus, window)
        rng = np.random.default_rng(seed + place)
        evidence, words = _evidence(corpus, table, picks, read, window, rng)
        measured = word_detection(worded.keywords, *words)
        measured = measured.model_copy(update={"fuzzing": word_fuzzing(worded.keywords, evidence.fuzzes)})
        statistics = statistics_of(harvest, place)
        up, down = effects[place]
        concept = Concept(
            id=name,
            label=worded.text,
            site=str(dictionary.site),
            latents=tuple(group),
            tokens=tuple(word for word, _ in worded.words[:12]),
            examples=tuple(e.context for e in examples if e.kind == "top"),
            density=statistics.density,
            label_score=measured.detection,
        )
        found.entries.append(
            Entry(
                concept=concept,
                statistics=statistics,
                scores=measured,
                promoted=up,
                suppressed=down,
                words=worded.words,
                acts_on=worded.acts_on,
            )
        )
        found.examples[name] = examples
        found.evidence[name] = evidence
        found.texts[name] = [
            _text(corpus, table, n, window) for n in dict.fromkeys([*picks.top, *picks.quantile])
        ][:16]
    ids = [entry.concept.id for entry in found.entries]
    near = nearest_pairs(harvest.directions, together, num=12)
    found.neighbours.extend((ids[a], ids[b], cosine, phi) for a, b, cosine, phi in near)
    return found


def choose(harvest: Harvest, place: int, num_examples: int) -> Chosen:
    """Which stretches of a concept to show, to label from and to score with."""
    number, peak, mean = harvest.drawn(place)
    share = float(harvest.state["stretches"][place] / harvest.state["counts"][2].clamp_min(1))
    bound = max(bound_of(mean, share), 1e-9)
    held = is_held_out(number)
    sample, sample_mean = harvest.sample
    sample_held, shows = is_held_out(sample), sample_mean[:, place] > bound

    def unite(*parts: np.ndarray) -> list[int]:
        return list(dict.fromkeys(int(n) for part in parts for n in part))

    here = np.flatnonzero(~held)
    here = here[np.argsort(peak[here])]
    strata = np.array_split(here, 4)[::-1]
    each = max(1, num_examples // 4)
    quantile = [int(number[stratum[i]]) for stratum in strata for i in _spread(len(stratum), each)]
    prevalence = share * float((mean > bound).mean()) if len(mean) else 0.0
    return Chosen(
        top=harvest.kept("top", place)[: 2 * num_examples],
        quantile=quantile,
        near=harvest.kept("near_shown", place)[: num_examples // 2],
        shown=unite(number[~held & (mean > bound)], sample[~sample_held & shows]),
        other=sample[~sample_held & ~shows].tolist(),
        held_shown=unite(number[held & (mean > bound)], sample[sample_held & shows]),
        held_other=sample[sample_held & ~shows][:_OTHER_TEXTS].tolist(),
        held_near=harvest.kept("near_held", place),
        prevalence=min(max(prevalence, 1e-6), 1 - 1e-6),
    )


def _spread(num: int, wanted: int) -> list[int]:
    if num == 0:
        return []
    return sorted({round((i + 0.5) * num / wanted - 0.5) for i in range(wanted)} & set(range(num)))


def statistics_of(harvest: Harvest, place: int) -> ConceptStatistics:
    """The numbers of one concept."""
    state = harvest.state
    tokens, answers, stretches = (int(n) for n in state["counts"])
    active, total = float(state["active"][place]), float(state["total"][place])
    _, peak, _ = harvest.drawn(place)
    mean = float(state["mean"][place]) / max(stretches, 1)
    variance = float(state["square"][place]) / max(stretches, 1) - mean * mean
    return ConceptStatistics(
        density=active / max(tokens, 1),
        mean=total / max(tokens, 1),
        mean_active=total / max(active, 1.0),
        max=float(state["max"][place]),
        in_answers=float(state["answers"][place]) / total if 0 < answers < tokens and total > 0 else None,
        texts=float(state["stretches"][place]) / max(stretches, 1),
        quantiles=tuple(round(float(q), 4) for q in np.quantile(peak, _QUANTILES)) if len(peak) else (),
        usual=(mean, max(variance, 0.0) ** 0.5),
        num_tokens=tokens,
    )


def _read_again(
    model: Model,
    dictionary: Dictionary,
    corpus: Sequence[Encoded],
    groups: Sequence[Sequence[int]],
    chosen: Sequence[Chosen],
    pairs: Sequence[int],
    *,
    window: int,
    label: str | None,
) -> tuple[dict[tuple[int, int], np.ndarray], csr_array]:
    """Activations by token of the chosen stretches by (concept, number), and `[token, concept]` whether it acts, of `pairs`."""
    wanted: dict[int, list[int]] = {number: [] for number in pairs}
    for place, picks in enumerate(chosen):
        for number in {*picks.top, *picks.quantile, *picks.held_shown[:_FUZZ_TEXTS]}:
            wanted.setdefault(number, []).append(place)
    rows = sorted({number // MAX_WINDOWS for number in wanted})
    chunks = [rows[start : start + 256] for start in range(0, len(rows), 256)]
    sums, paired = GroupSums(groups, dictionary.d_dict), set(pairs)
    scores: dict[tuple[int, int], np.ndarray] = {}
    active: list[csr_array] = []
    for chunk in track(chunks, label, unit="chunks") if label else chunks:
        for block in iter_blocks(model, dictionary, [corpus[row] for row in chunk], sums, window=window):
            for at, number in enumerate(block.numbers.tolist()):
                for place in wanted.get(number, ()):
                    scores[place, number] = block.acts[at, :, place].numpy().astype(np.float32)
                if number in paired:
                    active.append(csr_array((block.acts[at][block.used[at]] > 0).numpy()))
    from scipy.sparse import vstack

    return scores, csr_array(vstack(active)) if active else csr_array((0, len(groups)))


def _examples(
    corpus: Sequence[Encoded],
    table: WordTable,
    picks: Chosen,
    read: dict[int, np.ndarray],
    num: int,
    window: int,
    longest: int,
) -> list[Example]:
    """Contexts of a concept, without repetitions."""
    found: list[Example] = []
    seen: set[tuple[str, ...]] = set()
    parts: list[tuple[ExampleKind, list[int], int]] = [
        ("top", picks.top, num),
        ("quantile", picks.quantile, num),
        ("near_miss", picks.near, num // 2),
    ]
    for kind, numbers, room in parts:
        for number in numbers:
            ids = read_stretch(corpus, number, window).ids
            scores = read.get(number, np.zeros(len(ids), dtype=np.float32))[: len(ids)]
            at = int(scores.argmax()) if scores.max(initial=0) > 0 else len(ids)
            start = max(0, min(at - longest * 2 // 3, len(ids) - longest))
            where = slice(start, start + longest)
            tokens = tuple(table.piece(token) for token in ids[where])
            if tokens in seen or room == 0:
                continue
            seen.add(tokens)
            room -= 1
            context = TokenContext(
                tokens=tokens,
                scores=tuple(round(float(score), 4) for score in scores[where]),
                example=int(number) // MAX_WINDOWS,
            )
            found.append(Example(kind=kind, peak=float(scores.max(initial=0)), context=context))
    return found


def _label(
    harvest: Harvest,
    place: int,
    picks: Chosen,
    table: WordTable,
    matrix: csr_array,
    place_of: dict[int, int],
    read: dict[int, np.ndarray],
    corpus: Sequence[Encoded],
    window: int,
) -> WordLabel:
    """The label of a concept from words."""
    shown = matrix[[place_of[n] for n in picks.shown]] if picks.shown else matrix[:0]
    other = matrix[[place_of[n] for n in picks.other]] if picks.other else matrix[:0]
    score = word_scores(shown, other, picks.prevalence)
    names = table.names
    ranked = [int(w) for w in np.argsort(-score) if score[w] > 0 and not is_part(names[w])]
    best = ranked[:_WORDS_KEPT]
    activation: dict[str, float] = {}
    times: dict[str, int] = {}
    homes: dict[str, set[str]] = {}
    for number in {*picks.top, *picks.quantile}:
        if number not in read:
            continue
        features = table.features(read_stretch(corpus, number, window).ids)
        for (word, part), score_here in zip(features, read[number].tolist(), strict=False):
            for name in (word, part):
                if name:
                    activation[name] = activation.get(name, 0.0) + score_here
                    times[name] = times.get(name, 0) + 1
            if part:
                homes.setdefault(part, set()).add(word)
    part_of = {
        part: next(iter(there)) for part, there in homes.items() if len(there) == 1 and there != {NUMBER}
    }
    statistics = statistics_of(harvest, place)
    words = [(names[w], round(float(score[w]), 4)) for w in best]
    return word_label(words, acts_on(activation, times, part_of), statistics.in_answers)


def _evidence(
    corpus: Sequence[Encoded],
    table: WordTable,
    picks: Chosen,
    read: dict[int, np.ndarray],
    window: int,
    rng: np.random.Generator,
) -> tuple[Evidence, tuple[list[set[str]], list[set[str]], list[set[str]]]]:
    """Held-out texts of a concept, and their words."""
    fuzzes = []
    for number in picks.held_shown[:_FUZZ_TEXTS]:
        if number not in read:
            continue
        ids = read_stretch(corpus, number, window).ids
        words = table.features(ids)
        fuzz = make_fuzz([table.piece(token) for token in ids], read[number][: len(ids)], words, rng)
        if fuzz is not None:
            fuzzes.append(fuzz)
    parts = (picks.held_shown, picks.held_other, picks.held_near)
    words = tuple([{table.names[w] for w in table.distinct(n)} for n in part] for part in parts)
    texts = [[_text(corpus, table, n, window) for n in part[:12]] for part in parts]
    return Evidence(*texts, fuzzes), words  # type: ignore[return-value]


def _text(corpus: Sequence[Encoded], table: WordTable, number: int, window: int) -> str:
    return "".join(table.piece(token) for token in read_stretch(corpus, number, window).ids)


__all__ = ["Chosen", "Described", "Evidence", "LabelScores", "choose", "describe", "statistics_of"]
