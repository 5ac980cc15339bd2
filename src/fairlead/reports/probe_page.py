"""A probe as one self-contained page: what it is worth beside its baselines, reliability, ROC, and texts coloured by its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from fairlead.probes.scoring import ScoredText
from fairlead.reports import palette
from fairlead.reports.html import environment, write_page
from fairlead.reports.svg import Box
from fairlead.studies.probes import Probed

MEANINGS = {
    "surprisal": "of the tokens that were written, from the model's own probabilities",
    "entropy": "of the model's next-token distribution before each token",
    "max_softmax": "probability of the model's most probable token there",
    "text_only": "words of prompt and text, without the model (TF-IDF, logistic regression)",
    "span_text": "words of the span alone",
    "exposures": "how often the fact stood in the training data: nobody has this for a real model",
    "shuffled": "the same kind of probe fitted on labels dealt out anew: a placebo",
}
DRAWN = ("probe", "entropy", "max_softmax", "text_only", "exposures", "surprisal")


def roc_svg(curves: dict[str, list[list[float]]]) -> str:
    """SVG text of ROC curves; a marker and a dash tell lines apart besides their colour."""
    box = Box(56, 18, 300, 300, 0.0, 1.0)
    names = [name for name in DRAWN if name in curves]
    lines = [
        {
            "name": name,
            "style": index,
            "points": " ".join(f"{box.x(x)},{box.y(y)}" for x, y in curves[name]),
            "dash": ("none", "7 4", "2 4", "9 3 2 3", "12 4", "4 2")[index],
            "y": 30 + 22 * index,
        }
        for index, name in enumerate(names)
    ]
    ticks = [(box.x(t), box.y(t), f"{t:.0%}") for t in (0, 0.25, 0.5, 0.75, 1)]
    return environment().get_template("roc.svg").render(box=box, lines=lines, ticks=ticks, palette=palette)


def reliability_svg(bins: list[list[float]], base: float) -> str:
    """SVG text of the reliability diagram: circles grow with the number of spans in their bin."""
    box = Box(56, 18, 300, 300, 0.0, 1.0)
    most = max((num for *_, num in bins), default=1)
    points = [
        {
            "x": box.x(p),
            "y": box.y(share),
            "r": round(3 + 9 * (num / most) ** 0.5, 1),
            "title": f"said {p:.0%}, came true {share:.0%}, {num:.0f} spans",
        }
        for p, share, num in bins
    ]
    ticks = [(box.x(t), box.y(t), f"{t:.0%}") for t in (0, 0.25, 0.5, 0.75, 1)]
    return (
        environment()
        .get_template("reliability.svg")
        .render(box=box, points=points, ticks=ticks, base=box.y(base), palette=palette)
    )


def write_probe_page(path: str | Path, found: Probed, *, command: str = "") -> Path:
    """Write the page of a probe study to one HTML file, atomically, and return the path.

    Raises:
        RunError: The file cannot be written.
    """
    best = found.records[found.best]
    name = found.probe.name
    context = {
        "title": f"Probe for '{name}'",
        "verdict": _verdict(found.best, best),
        "kinds": [
            {"name": kind, "kept": kind == found.best, **record} for kind, record in found.records.items()
        ],
        "baselines": [
            {"name": key, "meaning": MEANINGS.get(key, ""), **row} for key, row in best["baselines"].items()
        ],
        "by": best["by"],
        "best": best,
        "probe": found.probe,
        "sites": ", ".join(str(site) for site in found.probe.sites),
        "roc": Markup(roc_svg(best["roc"])),
        "reliability": Markup(reliability_svg(best["reliability"], best["share_positive"])),
        "texts": [_text(text) for text in found.scored],
        "command": command,
    }
    return write_page(path, "probe.html", context)


def _verdict(kind: str, record: dict[str, Any]) -> str:
    low, high = record["auroc_interval"]
    beaten = [name for name, row in record["baselines"].items() if row["gain"][1] > 0]
    ahead = [name for name, row in record["baselines"].items() if row["gain"][2] < 0]
    text = (
        f"{kind}: AUROC {record['auroc']:.3f} ({low:.3f} to {high:.3f}) on {record['num_entities']} entities it has not seen, "
        f"calibration error {record['ece']:.3f} ({record['ece_before']:.3f} before). "
    )
    text += f"Surely above {', '.join(beaten)}. " if beaten else "Surely above no baseline. "
    return text + (f"Surely below {', '.join(ahead)}." if ahead else "")


def _text(text: ScoredText) -> dict[str, Any]:
    """A text's tokens in eleven shades, and its stretches."""
    whole = "".join(text.tokens)
    return {
        "prompt": text.prompt,
        "tokens": [
            {"text": token, "shade": min(10, max(0, round(10 * score))), "score": f"{score:.2f}"}
            for token, score in zip(text.tokens, text.scores, strict=True)
        ],
        "stretches": [
            {
                "text": whole[start:end],
                "label": label,
                "score": score,
                "wrong": label is not None and (score >= 0.5) != label,
            }
            for start, end, label, score in text.stretches
        ],
    }
