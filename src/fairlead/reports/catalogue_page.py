"""A catalogue of concepts, or one inspected text, as a self-contained page.

The list is filtered and ordered in the page itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairlead.concepts import Catalogue, Entry, Example, Inspection
from fairlead.core.records import TokenContext
from fairlead.reports.answers import Token
from fairlead.reports.html import asset, write_page

KINDS = (
    ("top", "Where it acts most"),
    ("quantile", "From strong to weak (by quantile of its activation)"),
    ("near_miss", "Near misses: it does not act here"),
)
_SHOWN = {"top": 5, "quantile": 4, "near_miss": 2}
GOOD = 0.8


def write_catalogue_page(path: str | Path, catalogue: Catalogue, *, limit: int = 1000) -> Path:
    """Write a catalogue as one HTML file and return its path.

    Args:
        path: File to write, replaced atomically.
        catalogue: What to show.
        limit: Concepts shown, the best labelled first.

    Raises:
        CatalogueError: The catalogue cannot be read.
        RunError: The file cannot be written.
    """
    meta, placebo = catalogue.meta, catalogue.meta.get("placebo") or {}
    bad_below = placebo.get("value_90")

    def bound(entry: Entry) -> float | None:
        """What nine in ten labels of random directions stay below, as judged by this entry's judge."""
        words = placebo.get("words")
        return words.get("value_90") if words and entry.scores.judge != placebo.get("judge") else bad_below

    entries = catalogue.entries[:limit]
    examples = catalogue.examples_of([entry.concept.id for entry in entries])
    context: dict[str, Any] = {
        "title": f"What {Path(catalogue.model_name).name} knows at {catalogue.site}",
        "verdict": _verdict(catalogue, bound),
        "tiles": _tiles(catalogue, placebo),
        "rows": [_row(catalogue, entry, examples[entry.concept.id], bound(entry)) for entry in entries],
        "kinds": KINDS,
        "bad_below": bad_below,
        "facts": [
            ("model", f"{catalogue.model_name} (fingerprint {catalogue.model_fingerprint[:12]})"),
            ("site", catalogue.site),
            ("dictionary", f"{meta['num_latents']:,} latents (hash {catalogue.dictionary_sha256[:12]})"),
            ("texts", f"{Path(meta['data']).name}: {meta['num_rows']:,} rows, {meta['num_tokens']:,} tokens"),
            ("labels", "words" if meta["labels"] == "words" else f"by {meta['labels']}"),
            ("shown", f"{len(entries):,} of {len(catalogue):,} concepts"),
        ],
    }
    return write_page(path, "catalogue.html", context, scripts=[asset("catalogue.js")])


def write_inspection(path: str | Path, catalogue: Catalogue, seen: Inspection, *, num: int = 12) -> Path:
    """Write an inspected text with highlighted tokens as one HTML file and return its path.

    Raises:
        RunError: The file cannot be written.
    """
    concepts = [
        {
            "concept": one.concept,
            "peak": one.peak,
            "score": catalogue.entry(one.concept.id).scores.value,
            "times": f"{one.times_usual:.3g} x" if one.times_usual < 1000 else "over 1,000 x",
            "context": TokenContext(tokens=seen.tokens, scores=one.scores),
        }
        for one in seen.concepts[:num]
    ]
    text = " ".join("".join(seen.tokens).split())
    return write_page(path, "inspection.html", {"title": text[:120], "concepts": concepts})


def _row(catalogue: Catalogue, entry: Entry, shown: list[Example], bad_below: float | None) -> dict[str, Any]:
    concept, value = entry.concept, entry.scores.value
    found = [concept.id, concept.label, entry.word_label, *concept.tokens]
    found += [effect.token for effect in entry.promoted[:8]]
    density = entry.statistics.density
    return {
        "entry": entry,
        "find": " ".join(found).lower(),
        "bad": value is None or value <= (bad_below if bad_below is not None else 0.6),
        "good": value is not None and value >= GOOD,
        "bar": round(100 * max(0.0, (value or 0.5) - 0.5), 1),
        "density": f"{density:.1%}" if density >= 0.01 else f"{density:.3%}",
        "examples": {
            kind: [_tokens(e.context, entry.statistics.max) for e in shown if e.kind == kind][: _SHOWN[kind]]
            for kind, _ in KINDS
        },
        "near": [one for one in catalogue.neighbours(concept.id, 4) if one.cosine > 0.1],
        "together": [
            one for one in catalogue.neighbours(concept.id, 4, by="together") if one.together > 0.05
        ],
    }


def _tokens(context: TokenContext, top: float) -> list[Token]:
    """Tokens with their highlight, 0 to 4, on one scale for all examples of a concept."""
    return [
        Token(text, 0 if score <= 0 or top <= 0 else min(4, 1 + int(3.999 * (score / top) ** 0.5)))
        for text, score in zip(context.tokens, context.scores, strict=True)
    ]


def _verdict(catalogue: Catalogue, bound: Callable[[Entry], float | None]) -> str:
    values = [entry.scores.value for entry in catalogue.entries]
    good = sum(value is not None and value >= GOOD for value in values)
    text = f"{len(catalogue):,} concepts; {good:,} have a label that tells where they act (score of {GOOD} or more)."
    pairs = [(entry.scores.value, bound(entry)) for entry in catalogue.entries]
    if any(below is not None for _, below in pairs):
        beaten = sum(value is not None and below is not None and value > below for value, below in pairs)
        text += f" {beaten:,} labels beat nine in ten labels of random directions."
    return text


def _tiles(catalogue: Catalogue, placebo: dict[str, Any]) -> list[tuple[str, str, str]]:
    values = [(v, e.statistics.mean) for e in catalogue.entries if (v := e.scores.value) is not None]
    total = sum(weight for _, weight in values)
    tiles = [
        ("Concepts", f"{len(catalogue):,}", f"of {catalogue.meta['num_latents']:,} latents"),
        ("Tokens read", f"{catalogue.meta['num_tokens']:,}", f"{catalogue.meta['num_rows']:,} texts"),
    ]
    if values and total > 0:
        weighted, mean = sum(v * w for v, w in values) / total, sum(v for v, _ in values) / len(values)
        beside = ("", "")
        if placebo.get("weighted") is not None:
            beside = (
                f"; random directions {placebo['weighted']:.2f}",
                f"; random directions {placebo['value']:.2f}",
            )
        tiles.append(
            ("Label score by activation", f"{weighted:.2f}", f"strong concepts count more{beside[0]}")
        )
        tiles.append(("Label score, all alike", f"{mean:.2f}", f"mean of detection and fuzzing{beside[1]}"))
    return tiles
