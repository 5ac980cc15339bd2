"""`make bench`: the ratios of DESIGN section 9, each measured side by side in one run, with its placebo.

python -m benchmarks [--quick] [--publish costs]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time

from benchmarks.summary import write_table


def ask(module: str, *options: str) -> dict:
    """Run one benchmark in a process of its own and read its JSON."""
    print(f"running {module} ...", file=sys.stderr)
    answer = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", "--json", *options], stdout=subprocess.PIPE, check=True
    )
    return json.loads(answer.stdout)


def help_seconds(repeats: int) -> list[float]:
    """Seconds of `fairlead --help`, each in a new process."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "fairlead.cli", "--help"], stdout=subprocess.DEVNULL, check=True
        )
        found.append(time.perf_counter() - start)
    return sorted(found)


def row(title: str, middle: float, low: float, high: float, target: str, *, unit: str = "x") -> dict:
    """One line of the table."""
    return {
        "title": title,
        "cells": {
            "ratio": f"{middle:.2f} {unit}",
            "spread": f"{low:.2f} to {high:.2f}",
            "target": target,
        },
    }


def main() -> None:
    """Measure, print, and publish where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    args = parser.parse_args()
    few, many = ("8", "20") if args.quick else ("20", "60")

    rows = []
    capture = ask("bench_capture", "--repeats", many)["capture_over_forward_by_hand"]
    for found in capture:
        ratio = found["ratio"]
        title = f"capture at {found['site']}, batch {found['batch']} / forward by hand to that layer"
        rows.append(row(title, ratio["median"], ratio["low"], ratio["high"], "at most 1.05"))
    for found in capture:
        ratio = found["several_over_one"]
        title = f"capture at {found['num_sites']} sites / at the last of them, batch {found['batch']}"
        rows.append(row(title, ratio["median"], ratio["low"], ratio["high"], "at most 1.02"))
    menu = ask("bench_menu", "--repeats", few)
    rows.append(
        row(
            "menu on a batch / forward + backward",
            menu["menu"]["median"],
            *menu["menu"]["quartiles"],
            "at most 1.10",
        )
    )
    training = ask("bench_training", "--rounds", few)
    targets = {
        "adapter + observation": "at most 1.10",
        "adapter + explain-away (cached)": "at most 1.15",
        "adapter + explain-away + observation": "at most 1.15",
    }
    for name, found in training.items():
        if "ratio" in found:
            title = f"training step, {name} / plain TRL step"
            rows.append(row(title, found["ratio"], found["low"], found["high"], targets.get(name, "")))
    seconds = help_seconds(5)
    rows.append(row("fairlead --help", seconds[2], seconds[0], seconds[-1], "under 0.50 s", unit="s"))

    for line in rows:
        print(
            f"{line['title']:75} {line['cells']['ratio']:>8}  ({line['cells']['spread']})  {line['cells']['target']}"
        )
    if args.publish:
        write_table(
            args.publish,
            title="What it costs",
            model="random Llamas of the pocket model's size",
            command="make bench",
            columns=(("ratio", "median"), ("spread", "quartiles (--help: extremes)"), ("target", "target")),
            rows=rows,
            notes=[
                f"One thread, {platform.machine()} CPU, Python {platform.python_version()}; "
                "a placebo (the baseline against itself) shows the noise. Several sites of a large batch outlive the forward, and "
                "with glibc's defaults their memory is asked of the system anew every time; kept by the allocator "
                "(`MALLOC_TRIM_THRESHOLD_` and `MALLOC_MMAP_THRESHOLD_` of 1 GB) they cost next to nothing (lab notes)."
            ],
        )


if __name__ == "__main__":
    main()
