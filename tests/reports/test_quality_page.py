"""The page of a dictionary's quality: every number stands on it, nothing loads from elsewhere, and the bars are the counts."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from fairlead.dictionaries.quality import DictionaryQuality, Histogram
from fairlead.reports import density_svg, render_quality, write_quality

QUALITY = DictionaryQuality(
    site="layers.3.resid_post",
    kind="batch_topk",
    d_dict=12,
    num_tokens=4321,
    metrics={
        "fvu": 0.123,
        "l0": 24.04,
        "dead": 0.25,
        "ce_model": 1.5,
        "ce_dictionary": 1.625,
        "ce_mean": 4.75,
        "ce_recovered": 0.9615,
        "fvu_random": 0.456,
        "fvu_pca": 0.321,
    },
    density=Histogram(edges=(-1.0, -0.75, -0.5, -0.25, 0.0), counts=(4, 2, 0, 3), never=3),
    stability={"stable": 0.431, "mean_max_cosine": 0.71, "mcc": 0.62, "stable_random": 0.011},
    planted={
        "independent": {"mcc": 0.83, "found": 0.701, "precision": 0.61, "recall": 0.52, "fvu": 0.2, "l0": 8.1}
    },
)


def test_every_number_is_on_the_page_and_nothing_comes_from_elsewhere(tmp_path):
    page = write_quality(tmp_path / "q.html", QUALITY, command="fairlead dict <evaluate>").read_text("utf-8")
    for text in (
        "12.3%",
        "45.6%",
        "32.1%",
        "96.2%",
        "25%",
        "4,321",
        "43.1%",
        "1.1%",
        "0.83",
        "70.1%",
        "1.625",
    ):
        assert text.replace("%", "") in page.replace("\u202f", "").replace("\u00a0", ""), text
    assert "less than the better baseline" in page and "dict &lt;evaluate&gt;" in page
    assert not re.search(r"(?:src|href)=|https?://(?!www\.w3\.org)|<script", page)
    worse = QUALITY.model_copy(update={"metrics": {**QUALITY.metrics, "fvu": 0.4}})
    assert "no less than the better baseline" in render_quality(worse)


def test_optional_parts_are_left_out():
    bare = QUALITY.model_copy(update={"stability": {}, "planted": {}})
    assert "another seed" not in render_quality(bare) and "Planted" not in render_quality(bare)


def test_the_bars_are_as_high_as_the_counts():
    tree = ElementTree.fromstring(density_svg(QUALITY.density))
    bars = [node for node in tree.iter() if node.tag.endswith("rect") and node.get("class") != "ground"]
    heights = [float(bar.get("height")) for bar in bars]
    counts = [3, 4, 2, 0, 3]
    assert len(bars) == 5 and bars[0].get("class") == "avoid"
    for height, count in zip(heights, counts, strict=True):
        assert abs(height / max(heights) - count / 4) < 0.02
