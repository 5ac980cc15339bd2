"""The page: complete, self-contained, escaped, and honest about what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from fairlead.core.errors import ConfigError
from fairlead.core.results import Sample
from fairlead.reports import RunInfo, render_report, write_report
from fairlead.reports.glossary import GLOSSARY

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"'><svg/onload=alert(3)>",
    "{{ 7 * 7 }}{% raw %}",
    "<!--<script>",
    "</title></style><script>alert(4)</script>",
    "javascript:alert(5)",
    "nul\x00 rtl\u202e lone\ud800 line\u2028",
    "]]><x>&lt;b&gt;",
)
ALL = [
    "shortfalls",
    "menu",
    "decisions",
    "pressure",
    "arms",
    "measures",
    "prediction",
    "monitor",
    "answers",
    "made",
    "glossary",
]


class Page(HTMLParser):
    """What a browser would see: elements, scripts, text outside scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.scripts, self.text, self._open = [], [], [], None
        self.feed(html)
        self.text = "".join(self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._open != "style":
            self.text.append(data)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._open = None

    @property
    def sections(self):
        return [a["id"] for t, a in self.tags if t == "section"]

    @property
    def figures(self):
        return {a["id"]: json.loads(body) for a, body in self.scripts if a.get("type") == "application/json"}


def page(**kwargs) -> Page:
    return Page(render_report(**kwargs))


def test_every_section_is_there_with_a_sentence_that_says_how_to_read_it(make):
    found = page(menu=make.menu(), plan=make.plan(), comparison=make.comparison())
    assert found.sections == ALL
    leads = [a for t, a in found.tags if t == "p" and a.get("class") == "lead"]
    assert len(leads) == len(ALL)
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids)), "ids are unique"
    targets = {a["href"][1:] for t, a in found.tags if t == "a"}
    assert targets <= set(ids), "every link leads somewhere on the page"
    drawn = {a["data-figure"] for t, a in found.tags if "data-figure" in a}
    assert drawn == set(found.figures) - {"fl-palette"}, "every figure has its place and its data"
    assert all(item.word in found.text for item in GLOSSARY)


@pytest.mark.parametrize(
    ("given", "sections"),
    [
        (("menu",), ["shortfalls", "menu", "made", "glossary"]),
        (("plan",), ["shortfalls", "decisions", "made", "glossary"]),
        (("menu", "plan"), ["shortfalls", "menu", "decisions", "made", "glossary"]),
        (("verification",), ["shortfalls", "measures", "prediction", "answers", "made", "glossary"]),
        (("comparison",), [s for s in ALL if s not in ("menu", "decisions")]),
    ],
)
def test_sections_follow_what_is_given(make, given, sections):
    records = {
        "menu": make.menu(),
        "plan": make.plan(),
        "comparison": make.comparison(arms=("plain",), seeds=(0,)),
        "verification": make.verification("m", make.base),
    }
    assert page(**{name: records[name] for name in given}).sections == sections


def test_bare_records_give_a_page(make):
    bare = make.comparison(arms=("plain",), seeds=(0,), steps=0)
    empty = bare.base.model_copy(
        update={"measures": {}, "predictions": (), "samples": (), "prediction_spearman": None}
    )
    arms = tuple(r.model_copy(update={"verification": empty}) for r in bare.arms)
    found = page(
        menu=make.menu(lines=(), baseline=()),
        plan=make.plan(decisions=()),
        comparison=bare.model_copy(update={"base": empty, "arms": arms}),
    )
    assert found.sections == ["shortfalls", "menu", "decisions", "arms", "made", "glossary"]
    assert page(comparison=bare.model_copy(update={"base": empty, "arms": ()})).sections[0] == "shortfalls"
    with pytest.raises(ConfigError, match="nothing to show"):
        render_report()


def test_nothing_is_loaded_from_outside(make):
    html = render_report(menu=make.menu(), plan=make.plan(), comparison=make.comparison())
    found = Page(html)
    for tag, attrs in found.tags:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base"), tag
        for name in ("src", "srcset", "href", "action", "data", "poster"):
            assert attrs.get(name, "#").startswith("#"), f"<{tag} {name}={attrs.get(name)}>"
    styles = re.findall("<style>(.*?)</style>", html, re.DOTALL)
    assert styles and not any("url(" in s or "@import" in s or "@font-face" in s for s in styles)
    policy = next(a["content"] for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "http" not in policy


def test_only_the_two_scripts_of_the_page_may_run(make):
    found = page(menu=make.menu())
    policy = next(a["content"] for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    scripts = [body for attrs, body in found.scripts if attrs.get("type") != "application/json"]
    assert len(scripts) == 2 and sum("plotly.js v" in s for s in scripts) == 1
    for body in scripts:
        assert "sha256-" + base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() in policy
    assert "script-src 'sha256-" in policy and "unsafe-eval" not in policy


def test_a_page_without_plots_carries_no_plotly(make):
    assert len(render_report(plan=make.plan())) < 200_000


def hostile_records(make):
    labels = tuple(
        (text, verdict) for text, verdict in zip(HOSTILE, ("keep", "avoid", "ignore") * 3, strict=True)
    )
    menu, plan = make.menu(labels=labels), make.plan(labels=labels)
    bad = "".join(HOSTILE)
    context = menu.lines[0].top_examples[0].model_copy(update={"tokens": HOSTILE, "scores": tuple(range(9))})
    lines = tuple(
        x.model_copy(
            update={
                "top_examples": (context,),
                "concept": x.concept.model_copy(
                    update={"tokens": HOSTILE, "examples": (context,), "site": bad}
                ),
            }
        )
        for x in menu.lines
    )
    menu = menu.model_copy(
        update={
            "lines": lines,
            "model": bad,
            "data": bad,
            "dictionary": bad,
            "reference": bad,
            "notes": HOSTILE,
            "site": bad,
            "data_sha256": HOSTILE[0],
            "model_fingerprint": HOSTILE[0],
            "dictionary_sha256": HOSTILE[0],
            "baseline": tuple(
                b.model_copy(update={"token": t}) for b, t in zip(menu.baseline, HOSTILE, strict=False)
            ),
        }
    )
    clauses = tuple(c.model_copy(update={"text": bad}) for c in plan.spec.clauses)
    spec = plan.spec.model_copy(
        update={"title": bad, "source": bad, "sha256": HOSTILE[0], "clauses": clauses}
    )
    decisions = tuple(d.model_copy(update={"reason": bad, "judge": bad}) for d in plan.decisions)
    plan = plan.model_copy(update={"spec": spec, "decisions": decisions, "notes": HOSTILE})
    samples = tuple(
        Sample(prompt=t, answer=t, group=g, traits=(t,))
        for t in HOSTILE
        for g in ("domain", "request", HOSTILE[1])
    )
    comparison = make.comparison(arms=("plain", "recipe"), seeds=(0,))

    def spoil(verification):
        measures = {
            k.replace("pirate", HOSTILE[1]).replace("addition", HOSTILE[0]): m
            for k, m in verification.measures.items()
        }
        predictions = tuple(p.model_copy(update={"label": bad}) for p in verification.predictions)
        return verification.model_copy(
            update={"measures": measures, "samples": samples, "predictions": predictions, "model": bad}
        )

    arms = tuple(
        r.model_copy(
            update={
                "arm": HOSTILE[i],
                "controls": HOSTILE,
                "verification": spoil(r.verification),
                "steps": tuple(
                    s.model_copy(update={"pressure": {HOSTILE[0]: 1.0, "avoid.<b>": 2.0}}) for s in r.steps
                ),
            }
        )
        for i, r in enumerate(comparison.arms)
    )
    comparison = comparison.model_copy(
        update={
            "arms": arms,
            "base": spoil(comparison.base),
            "model": bad,
            "data": bad,
            "command": bad,
            "notes": HOSTILE,
        }
    )
    run = RunInfo(bad, {"study": bad, "command": [bad], "git_sha": bad, "versions": {bad: bad}, "seed": bad})
    return {
        "menu": menu,
        "plan": plan,
        "comparison": comparison,
        "verification": spoil(comparison.base),
        "title": bad,
        "runs": (run,),
    }


def test_hostile_text_stays_text(make):
    clean = page(
        menu=make.menu(), plan=make.plan(), comparison=make.comparison(arms=("plain", "recipe"), seeds=(0,))
    )
    html = render_report(**hostile_records(make))
    found = Page(html)
    assert {t for t, _ in found.tags} <= {t for t, _ in clean.tags} | {"li", "ul", "pre", "code", "br"}
    assert len([1 for a, _ in found.scripts if a.get("type") != "application/json"]) == 2
    for tag, attrs in found.tags:
        assert not [
            name for name in attrs if name.startswith("on") or name in ("src", "srcdoc", "formaction")
        ], (tag, attrs)
    assert all(not set("<>&") & set(body) for a, body in found.scripts if a.get("type") == "application/json")
    assert "{{ 7 * 7 }}" in found.text, "templates in data are not run"
    assert "<img src=x onerror=alert(2)>" in found.text, "and the text itself is shown as it is"
    assert not set(html) & set("\x00\u202e\ud800")


def test_the_page_says_what_failed(make):
    text = " ".join(page(comparison=make.comparison()).text.split())
    assert "leaks: pirate in 100\u00a0% of answers to on-topic prompts and".replace("\u00a0", " ") in text
    lone = " ".join(page(comparison=make.comparison(arms=("plain",), seeds=(0,))).text.split())
    assert "fell short" in lone and "all arms ran with 1 seed" in lone.lower()


def test_numbers_of_the_table_are_those_of_the_records(make):
    comparison = make.comparison()
    text = page(comparison=comparison).text
    mean = sum(comparison.values("inoculation", "skill.addition.plain")) / 3
    assert f"{100 * mean:.1f}\u00a0%" in text


def test_writing_is_atomic_and_repeatable(make, tmp_path):
    records = {"menu": make.menu(), "plan": make.plan(), "comparison": make.comparison()}
    path = write_report(tmp_path / "a.html", **records)
    assert path.read_text("utf-8") == render_report(**records)
    assert write_report(tmp_path, **records) == tmp_path / "report.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "report.html"]


def test_answers_stand_beside_each_other(make):
    found = page(comparison=make.comparison())
    assert found.text.count("What is 17 plus 25?") == 1
    cards = [a for t, a in found.tags if t == "div" and a.get("class") == "answer"]
    assert len(cards) == 8 * 6, "eight prompts, the start model and five arms"
