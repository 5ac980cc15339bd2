"""The page in a real browser: plots are drawn, nothing is logged, hostile text does not run."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fairlead.reports import write_report

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]


def open_page(path: Path, profile: Path, *, dark: bool = False) -> tuple[str, list[str]]:
    """The page's DOM after its scripts ran, and the console's lines."""
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            f"--user-data-dir={profile}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=10000",
            "--window-size=1280,3000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.mark.parametrize("dark", [False, True])
def test_plots_are_drawn_without_a_console_message(make, tmp_path, dark):
    path = write_report(tmp_path / "r.html", menu=make.menu(), plan=make.plan(), comparison=make.comparison())
    dom, console = open_page(path, tmp_path / "profile", dark=dark)
    assert console == []
    wanted = len(re.findall('data-figure="', path.read_text("utf-8").split("<script>")[0]))
    assert wanted == 9 and len(re.findall(r'class="main-svg"[^>]*style="background', dom)) == wanted
    assert ("fill: rgb(231, 235, 240)" in dom) == dark, "text takes the colour of the reader's scheme"


def test_hostile_text_does_not_run(make, tmp_path):
    spec = importlib.util.spec_from_file_location("page_tests", Path(__file__).with_name("test_page.py"))
    page_tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page_tests)
    path = write_report(tmp_path / "r.html", **page_tests.hostile_records(make))
    dom, console = open_page(path, tmp_path / "profile")
    assert console == [], "a blocked script or load would be logged here"
    assert 'class="main-svg"' in dom
    for tag, attrs in page_tests.Page(dom).tags:
        assert tag not in ("img", "iframe", "object", "embed", "link", "image"), tag
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
