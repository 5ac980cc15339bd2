"""Search a catalogue by a text: by its words, and by what it makes the model do.

Three channels, each scaled so that its best concept has 1:

- *words that tell*: the query's words among the words that set a concept's texts apart from others, by their F-score;
- *full text*: BM25 (SQLite FTS5, with stemming) over label, words, contexts and the tokens that the concept promotes;
- *activation* (with the model): the query itself is read by the model, as a text and, for a chat model, as a request, a question and an
  answer; a concept counts by sqrt(share of the activation) x log(activation / usual activation), the `surprise` of the menu.

The score is their weighted sum. "Arr matey" is found by what it activates, "pirate speech" by its words.

A query may have examples beside it, as a clause of a spec has: their mean score is added. A description finds what a text is like,
examples what it is about; "compare three people" shares no word with "Zoe is slower than Ned", but its examples do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from fairlead.concepts.entries import Hit
from fairlead.concepts.labels import stem
from fairlead.concepts.profiles import concept_activations
from fairlead.core.errors import ConfigError

if TYPE_CHECKING:
    from fairlead.concepts.catalogue import Catalogue
    from fairlead.models import Model

WEIGHTS = {"words": 1.0, "text": 1.0, "activation": 1.0}
_COLUMNS = "8.0, 4.0, 1.0, 2.0"  # BM25 weight of label, words, contexts, promoted tokens (which older catalogues lack)
STOP_WORDS = frozenset(
    "a about an and are as at be been but by can do does for from had has have he her his how i if in into is it its me my no not of on "
    "or our she so that the their them then there they this to was we were what when which who will with would you your".split()
)


def search_concepts(
    catalogue: Catalogue,
    text: str,
    *,
    examples: Sequence[str] = (),
    num: int = 10,
    model: Model | None = None,
) -> list[Hit]:
    """The concepts that a text finds, best first; see the module for how.

    Args:
        examples: Texts that show what the query describes; they count together as much as the query.

    Raises:
        CatalogueError: The model is not the one that the catalogue describes.
        ConfigError: The text, or an example, is empty.
    """
    if not all(query.strip() for query in (text, *examples)):
        raise ConfigError(
            "search: the text or an example is empty. Next: give a word, a description or an example sentence."
        )
    if model is not None:
        catalogue.check_model(model)
    total: dict[str, float] = {}
    why: dict[str, list[str]] = {}
    for query, weight in ((text, 1.0), *((example, 1.0 / len(examples)) for example in examples)):
        for concept, (score, reasons) in _scores(catalogue, query, model).items():
            total[concept] = total.get(concept, 0.0) + weight * score
            why.setdefault(concept, []).extend(
                reason for reason in reasons if reason not in why.get(concept, ())
            )
    best = sorted(total, key=lambda concept: -total[concept])[:num]
    return [
        Hit(catalogue.get(concept), round(total[concept], 4), "; ".join(why[concept])) for concept in best
    ]


def _scores(catalogue: Catalogue, text: str, model: Model | None) -> dict[str, tuple[float, list[str]]]:
    """By concept the weighted sum of what each channel says, and the reasons."""
    channels = {"words": _by_words(catalogue, text), "text": _by_full_text(catalogue, text)}
    if model is not None:
        channels["activation"] = by_activation(catalogue, text, model)
    total: dict[str, tuple[float, list[str]]] = {}
    for channel, scores in channels.items():
        top = max((score for score, _ in scores.values()), default=0.0)
        for concept, (score, reason) in scores.items():
            if top > 0 and score > 0:
                before, reasons = total.get(concept, (0.0, []))
                total[concept] = (before + WEIGHTS[channel] * score / top, [*reasons, reason])
    return total


def query_words(text: str) -> list[str]:
    """The distinct words of a query, lower case, without the most usual ones (unless there are no others)."""
    words = list(dict.fromkeys(re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.casefold())))
    return [word for word in words if word not in STOP_WORDS] or words


def _by_words(catalogue: Catalogue, text: str) -> dict[str, tuple[float, str]]:
    words = query_words(text)
    if not words:
        return {}
    stems = list(dict.fromkeys(stem(word) for word in words))
    marks = ", ".join("?" * len(stems))
    rows = catalogue.query(
        f"SELECT id, word, score FROM words WHERE stem IN ({marks}) ORDER BY score DESC", *stems
    )
    best: dict[str, list[tuple[str, float]]] = {}
    for concept, word, score in rows:
        best.setdefault(concept, []).append((word, score))
    return {
        concept: (
            sum(score for _, score in hits),
            "its texts have " + ", ".join(f"'{word}'" for word, _ in hits[:3]),
        )
        for concept, hits in best.items()
    }


def _by_full_text(catalogue: Catalogue, text: str) -> dict[str, tuple[float, str]]:
    words = query_words(text)
    if not words:
        return {}
    query = " OR ".join('"' + word.replace('"', "") + '"' for word in words)
    rows = catalogue.query(
        f"SELECT id, -bm25(text, 0.0, {_COLUMNS}) FROM text WHERE text MATCH ? ORDER BY bm25(text, 0.0, {_COLUMNS}) LIMIT 200",
        query,
    )
    return {concept: (max(score, 1e-9), "full text") for concept, score in rows}


@torch.no_grad()
def by_activation(catalogue: Catalogue, text: str, model: Model) -> dict[str, tuple[float, str]]:
    """Concepts that act unusually strongly on a text, by id: score and reason."""
    from fairlead.data import has_chat_template

    dictionary, concepts = catalogue.load_dictionary(), catalogue.concepts
    usual = np.array([entry.statistics.mean for entry in catalogue.entries])
    readings = {"as text": [model.tokenizer.encode(text)]}
    if has_chat_template(model.tokenizer):
        readings = {name: [ids] for name, ids in chat_readings(model, text).items()}
    best: dict[str, tuple[float, str]] = {}
    for name, rows in readings.items():
        for ids in rows:
            if len(ids) < 2:
                continue
            batch = _one(ids[: model.max_length])
            hidden = model.capture(batch, [dictionary.site])[str(dictionary.site)][0, 1:]
            acts = concept_activations(dictionary, concepts, hidden).double().cpu().numpy()
            score = surprise(acts.mean(0), usual)
            for place in np.flatnonzero(score > 0):
                concept = concepts[place].id
                if score[place] > best.get(concept, (0.0, ""))[0]:
                    ratio = acts[:, place].mean() / max(usual[place], 1e-9)
                    best[concept] = (
                        float(score[place]),
                        f"acts on it {name}, {_times(ratio)} as strongly as usual",
                    )
    return best


def surprise(mean_C: np.ndarray, usual_C: np.ndarray) -> np.ndarray:
    """sqrt(share of the activation) x log(mean / usual mean), `[concept]`; 0 where not above the usual."""
    total = mean_C.sum()
    if total <= 0:
        return np.zeros_like(mean_C)
    floor = max(float(usual_C.mean()), 1e-12) * 0.01
    ratio = np.log((mean_C + floor) / (usual_C + floor))
    return np.sqrt(mean_C / total) * np.maximum(ratio, 0.0)


def chat_readings(model: Model, text: str) -> dict[str, list[int]]:
    """A text as a chat model meets it: as the system's request, the user's question, the model's answer."""
    from fairlead.data import Message, encode, encode_prompt

    answer = encode([[Message("user", ""), Message("assistant", text)]], model.tokenizer, max_length=None)[0]
    return {
        "as a request": encode_prompt([Message("user", "")], model.tokenizer, system=text),
        "as a question": encode_prompt([Message("user", text)], model.tokenizer),
        "as an answer": answer.input_ids,
    }


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio < 1000 else "over 1,000 times"


def _one(ids: Sequence[int]):
    from fairlead.data import Batch

    tokens = torch.tensor([list(ids)])
    return Batch(
        tokens,
        torch.ones_like(tokens),
        torch.ones_like(tokens, dtype=torch.bool),
        torch.zeros(1, dtype=torch.long),
    )
