"""Colours of reports and figures: one light palette and its counterpart on a dark ground.

Figures are made in the light colours; the page swaps them by `DARK` where the reader prefers a dark
scheme. Every foreground colour has a contrast of at least 3:1 (WCAG 2.2, 1.4.11) with its ground, text at
least 4.5:1, and no meaning rests on colour alone: markers, dashes and words repeat it. The hues are spread
after Okabe and Ito (2008).
"""

from __future__ import annotations

GROUND, DARK_GROUND = "#ffffff", "#161a20"
TEXT, MUTED, GRID, LINE = "#1b2430", "#55606e", "#e4e8ed", "#aab3bf"
GOAL = "#e3f3ee"  # shade of the region that a comparison aims at

VERDICTS = {"keep": "#0b7a6b", "avoid": "#c2410c", "ignore": "#7b8794", "undecided": "#3d6fb4"}
ARMS = ("#1f62c4", "#b8500b", "#7b3fb0", "#0b7a6b", "#b01e55", "#5f6b12", "#0a6f93", "#8a4b2a")
BASE = "#6b7683"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px 2px", "2px 2px")

DARK = {
    GROUND: DARK_GROUND,
    TEXT: "#e7ebf0",
    MUTED: "#9fabb9",
    GRID: "#2a313b",
    LINE: "#566170",
    GOAL: "#15302b",
    "#0b7a6b": "#3ec9b0",
    "#c2410c": "#ff9361",
    "#7b8794": "#8f9baa",
    "#3d6fb4": "#7fb0f2",
    "#1f62c4": "#74a9ff",
    "#b8500b": "#ffab5c",
    "#7b3fb0": "#c99bf5",
    "#b01e55": "#ff86b0",
    "#5f6b12": "#c3cf5f",
    "#0a6f93": "#5fc8ec",
    "#8a4b2a": "#dba07e",
    "#6b7683": "#a3aebb",
}


def arm_style(index: int) -> tuple[str, str, str]:
    """Colour, marker symbol and dash of the arm at `index` (they repeat after eight)."""
    return ARMS[index % len(ARMS)], SYMBOLS[index % len(SYMBOLS)], DASHES[index % len(DASHES)]


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two `#rrggbb` colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
