"""The quality of a dictionary as one small self-contained page: numbers, baselines, and the histogram of densities as SVG."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from fairlead.dictionaries.quality import DictionaryQuality, Histogram
from fairlead.reports import palette
from fairlead.reports.html import environment, render_page, write_text
from fairlead.reports.svg import Box, even_ticks
from fairlead.reports.text import percent


def density_svg(density: Histogram) -> str:
    """SVG text of the histogram: dead latents first, then from the rarest to the most frequent."""
    counts = [density.never, *density.counts]
    top = max([*counts, 1])
    box = Box(64, 36, 600, 240, 0, 1.08 * top)
    wide = box.width / len(counts)
    labels = ["never"] + [
        f"{percent(10**low)} to {percent(10**high)}"
        for low, high in zip(density.edges, density.edges[1:], strict=False)
    ]
    bars = [
        {
            "x": round(box.left + i * wide + 1, 1),
            "y": box.y(count),
            "width": round(wide - 2, 1),
            "height": round(box.top + box.height - box.y(count), 1),
            "label": label,
            "count": count,
            "dead": i == 0,
        }
        for i, (count, label) in enumerate(zip(counts, labels, strict=True))
    ]
    whole = [(i, edge) for i, edge in enumerate(density.edges) if abs(edge - round(edge)) < 1e-9]
    columns = [(round(box.left, 1), "never")]  # under the left edge: the next label stands one bar on
    columns += [
        (round(box.left + (i + 1) * wide, 1), f"1e{round(edge)}" if edge < 0 else "1") for i, edge in whole
    ]
    steps = [round(top * tick) for tick in even_ticks(0.0, 1.0)]
    return (
        environment()
        .get_template("density.svg")
        .render(
            box=box,
            bars=bars,
            rows=[(box.y(step), str(step)) for step in dict.fromkeys(steps)],
            columns=columns,
            width=box.left + box.width + 24,
            height=box.top + box.height + 52,
            palette=palette,
        )
    )


def render_quality(quality: DictionaryQuality, *, title: str = "", command: str = "") -> str:
    """The page as HTML text."""
    m = quality.metrics
    place = f"{quality.site} to {quality.to_site}" if quality.to_site else quality.site
    fvus = [
        ("this dictionary", m["fvu"], f"{quality.d_dict:,} latents, {m['l0']:.1f} active a token"),
        ("principal components", m["fvu_pca"], "as many as latents are active; the same for every token"),
        (
            "random decoder",
            m["fvu_random"],
            "as many random rows a token, with the best values they can have",
        ),
    ]
    measures = [
        (
            "cross-entropy recovered",
            percent(m["ce_recovered"]),
            "1 where the reconstruction serves the model as well as the real value, 0 where it serves no better than the mean",
        ),
        ("loss of the model", f"{m['ce_model']:.3f}", "nats a token"),
        ("loss with the reconstruction", f"{m['ce_dictionary']:.3f}", "in the place of the site's value"),
        ("loss with the mean", f"{m['ce_mean']:.3f}", "the mean activation in its place"),
        ("dead latents", percent(m["dead"]), f"not active on any of {quality.num_tokens:,} tokens"),
    ]
    s = quality.stability
    stability = (
        [
            (
                "stable",
                percent(s["stable"]),
                "rows whose one-to-one partner in the other dictionary has a cosine of at least .7",
            ),
            ("by chance", percent(s["stable_random"]), "the same with random rows for the other dictionary"),
            ("mean largest cosine", f"{s['mean_max_cosine']:.2f}", "with any row of the other dictionary"),
            ("mean cosine of partners", f"{s['mcc']:.2f}", "rows without a partner count 0"),
        ]
        if s
        else []
    )
    context = {
        "title": title or f"Dictionary at {place}",
        "verdict": _verdict(quality),
        "quality": quality,
        "fvus": _rows(fvus),
        "measures": _rows(measures),
        "stability": _rows(stability),
        "density": Markup(density_svg(quality.density)),
        "command": command,
    }
    return render_page("quality.html", context)


def write_quality(
    path: str | Path, quality: DictionaryQuality, *, title: str = "", command: str = ""
) -> Path:
    """Write the page to one HTML file, atomically, and return the path.

    Raises:
        RunError: The file cannot be written.
    """
    return write_text(path, render_quality(quality, title=title, command=command))


def _rows(rows: list) -> list[dict]:
    return [{"name": name, "value": value, "meaning": meaning} for name, value, meaning in rows]


def _verdict(quality: DictionaryQuality) -> str:
    m = quality.metrics
    best = min(m["fvu_pca"], m["fvu_random"])
    than = "less than" if m["fvu"] < best else "no less than"
    return (
        f"It leaves {percent(m['fvu'])} of the variance unexplained, {than} the better baseline at as many active "
        f"directions ({percent(best)}), and recovers {percent(m['ce_recovered'])} of the cross-entropy."
    )
