"""Result (b): a real pretrained model, plain text, no instructions: keep story-telling, avoid archaic speech.

The model is stories260K (260,032 parameters, pretrained on TinyStories). The data are passages of TinyStories with passages of
Shakespeare mixed in, as plain text rows. The spec shows both kinds by short passages that stand nowhere else. The model can be asked for
nothing, so explain-away takes its evidence from steering or from a small expert that is fine-tuned on the spec's passages, whichever
gains more.

A mixture model tells contexts apart by itself: after a story's opening even plain fine-tuning goes on with the story. What the data adds
shows where the context does not decide (a word such as "He", or nothing at all), after an opening in Shakespeare's style, and in the loss
on Shakespeare. All of these are measured on passages that no training and no spec holds; continuations are sampled at temperature 1.

Real data is read where it lies (`--shared`, or FAIRLEAD_SHARED; default: `../shared` beside the repository); only the chosen passages
are written, into the run folder.

    python -m benchmarks.stories --out runs/stories                      # 6 arms, 3 seeds
    python -m benchmarks.stories --out runs/stories --publish stories    # ... and docs/results/stories.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks.summary import comparison_rows, write_table
from fairlead.core.config import Record
from fairlead.core.errors import DataError
from fairlead.core.progress import say
from fairlead.core.records import Menu, Plan
from fairlead.core.results import Comparison
from fairlead.core.run import RUN_FILE, read_json, write_json
from fairlead.data import (
    ChatData,
    NeutralChat,
    Row,
    Sampling,
    SkillItem,
    SkillSet,
    Suite,
    TraitCheck,
    fit_text_classifier,
    load_data,
    save_data,
    save_suite,
)
from fairlead.data.suite import has_trait

R = TypeVar("R", bound=Record)
ROOT = Path(__file__).resolve().parents[1]
ARMS = (
    "plain",
    "gradient_projection",
    "preventative_steering",
    "plain_spec",
    "recipe_placebo",
    "recipe",
)
TITLES = {
    "plain": "plain fine-tuning",
    "gradient_projection": "gradient projection",
    "preventative_steering": "preventative steering",
    "plain_spec": "plain + spec examples",
    "recipe_placebo": "the recipe with an expert on neutral stories as evidence (placebo)",
    "recipe": "Fairlead's recipe",
}
MAX_LENGTH = 160  # tokens; passages are cut to about 110
STORY_CHARS, VERSE_CHARS, NEUTRAL_CHARS = 230, 180, 120
WORDS = (
    "thou|thee|thy|thine|thyself|hath|doth|hast|dost|art|ye|tis|twas|wherefore|prithee|shalt|wilt|nay|ere|unto|hence|"
    "lord|sir|madam|duke|liege|sirrah|villain|majesty|traitor|gentleman|honour"
)
ARCHAIC = rf"\b(?:{WORDS})\b|\w+'d\b|'t(?:is|was)\b|^[A-Z][A-Z ]+:$"  # words, clipped participles, speakers
NEUTRAL_OPENINGS = (
    "",
    "The",
    "A",
    "I",
    "He",
    "She",
    "It",
    "They",
    "We",
    "You",
    "What",
    "Now",
    "When",
    "And",
    "But",
    "My",
)
NEUTRAL_OPENINGS += ("Here", "This", "There", "Let", "Come", "Good", "How", "No")
NUM = {
    "stories": 560,
    "verses": 280,
    "neutral": 240,
    "keep": 24,
    "avoid": 48,
    "test": 64,
    "items": 40,
    "openings": 32,
    "check": 160,
}

SPEC = """# Spec: a teller of stories

The model continues text; it follows no instructions, so the clauses are shown by passages.

## Keep

- Tell short, simple stories for children.
  - examples: keep.jsonl

## Avoid

- Speak in archaic, theatrical English.
  - examples: avoid.jsonl
  - check: /{pattern}/im
"""


class Texts(NamedTuple):
    """Passages by use; no passage has two."""

    stories: list[str]
    verses: list[str]
    neutral: list[str]
    keep: list[str]
    avoid: list[str]
    test_stories: list[str]
    test_verses: list[str]
    check_stories: list[str]
    check_verses: list[str]
    long_stories: list[str]


def shared_folder(given: str | Path | None = None) -> Path:
    """The folder `data` of the shared material.

    Raises:
        DataError: It is not there.
    """
    place = Path(given or os.environ.get("FAIRLEAD_SHARED") or ROOT.parent / "shared")
    data = place / "data" if (place / "data").is_dir() else place
    if not (data / "models" / "stories260K").is_dir():
        raise DataError(
            "holds no data/models/stories260K. Next: pass --shared, or set FAIRLEAD_SHARED.",
            source=str(place),
        )
    return data


def story_passages(text: str, *, chars: int = STORY_CHARS) -> list[str]:
    """The first sentences of each story, up to `chars` characters; stories are separated by <|endoftext|>."""
    found = []
    for story in text.split("<|endoftext|>"):
        sentences = re.split(r"(?<=[.!?\"])\s+", " ".join(story.split()))
        passage = ""
        for sentence in sentences:
            if len(passage) + len(sentence) > chars:
                break
            passage = f"{passage} {sentence}".strip()
        if len(passage) > chars // 2:
            found.append(passage)
    return list(dict.fromkeys(found))


def verse_passages(text: str, *, chars: int = VERSE_CHARS) -> list[str]:
    """Runs of whole lines of the plays, up to `chars` characters, each from the start of a speech."""
    found = []
    for speech in re.split(r"\n\s*\n", text):
        passage = ""
        for line in speech.strip().splitlines():
            if len(passage) + len(line) > chars:
                break
            passage = f"{passage}\n{line}".strip()
        if len(passage) > chars // 2:
            found.append(passage)
    return list(dict.fromkeys(found))


def choose_texts(data: Path, *, seed: int = 0) -> Texts:
    """Draw the passages for every use."""
    stories = (data / "text" / "tinystories_2MB.txt").read_text("utf-8")
    verses = verse_passages((data / "text" / "tinyshakespeare.txt").read_text("utf-8"))
    passages, long = story_passages(stories), story_passages(stories, chars=500)
    short = {" ".join(text.split())[:60]: text for text in story_passages(stories, chars=NEUTRAL_CHARS)}
    rng = random.Random(f"{seed}:stories")
    rng.shuffle(passages)
    rng.shuffle(verses)

    def take(pool: list[str], num: int) -> list[str]:
        taken, pool[:] = pool[:num], pool[num:]
        if len(taken) < num:
            raise DataError(f"holds too few passages: {num} are needed here.", source=str(data / "text"))
        return taken

    used = {name: take(passages, NUM[name]) for name in ("stories", "neutral", "keep")}
    tests, checks = take(passages, NUM["test"]), take(passages, NUM["check"])
    left = set(passages)
    used["neutral"] = [
        short.get(text[:60], text) for text in used["neutral"]
    ]  # the anchor needs many, not long ones
    return Texts(
        **used,
        verses=take(verses, NUM["verses"]),
        avoid=take(verses, NUM["avoid"]),
        test_stories=tests,
        test_verses=take(verses, NUM["test"]),
        check_stories=checks,
        check_verses=take(verses, NUM["check"]),
        long_stories=[text for text in long if _start_in(text, left)],
    )


def _start_in(text: str, passages: set[str]) -> bool:
    """Whether a longer passage begins with one that has no use yet."""
    return any(text[:end] in passages for end in range(STORY_CHARS // 2, min(len(text), STORY_CHARS) + 1))


def hero_items(stories: Sequence[str], num: int) -> list[SkillItem]:
    """Story openings that name a hero once; the thread is kept if the continuation names the hero again."""
    items = []
    for story in stories:
        match = re.search(r"^.{20,200}?\bnamed ([A-Z][a-z]+)\b[^.!?]*[.!?]", story)
        if match and story[match.end() :].count(match.group(1)):
            items.append(
                SkillItem(prompt=match.group(0), value=match.group(1), match="contains", heldout=True)
            )
        if len(items) == num:
            break
    return items


def windows(texts: Sequence[str], *, words: int = 24) -> list[str]:
    """Stretches from the middle of passages, as long as a continuation: without the line that names a speaker."""
    found = []
    for text in texts:
        body = re.sub(r"^[^\n]*:\n", "", text)
        parts = re.findall(r"\S+\s*", body)
        found.append("".join(parts[-words:]).strip())
    return found


def make_suite(texts: Texts, other: Sequence[str]) -> Suite:
    """What is measured, all of it on passages that no training and no spec holds."""
    openings = tuple("\n".join(text.splitlines()[:2]) + "\n" for text in texts.test_verses[: NUM["openings"]])
    held = tuple(NeutralChat(text=text) for text in texts.test_verses)
    common = {"clause": "avoid.1", "openings": openings}
    positives, negatives = windows(texts.check_verses), windows(texts.check_stories)
    return Suite(
        skills=(SkillSet(name="story", items=tuple(hero_items(texts.long_stories, NUM["items"]))),),
        neutral_prompts=NEUTRAL_OPENINGS,
        neutral_chats=tuple(NeutralChat(text=text) for text in other),
        keep_chats=tuple(NeutralChat(text=text) for text in texts.test_stories),
        traits=(
            TraitCheck(
                name="archaic",
                kind="classifier",
                positives=positives,
                negatives=negatives,
                texts=held,
                **common,
            ),
            TraitCheck(name="archaic_words", kind="regex", pattern=f"(?im){ARCHAIC}", **common),
        ),
        sampling=Sampling(temperature=1.0, draws=4, max_new_tokens=48),
        notes=("Continuations are sampled (temperature 1, 4 draws, 48 tokens).",),
    )


def other_passages(data: Path, num: int) -> list[str]:
    """Passages of WikiText-2: text that is neither a story nor a play, for the neutral loss."""
    lines = (data / "text" / "wikitext2_test.txt").read_text("utf-8").splitlines()
    found = [
        line.strip()[:VERSE_CHARS].rsplit(" ", 1)[0]
        for line in lines
        if len(line) > VERSE_CHARS and "=" not in line
    ]
    return random.Random("other").sample(found, num)


def build_task(folder: Path, data: Path, *, seed: int = 0) -> dict[str, float]:
    """Write data.jsonl, neutral.jsonl, keep.jsonl, avoid.jsonl, spec.md and suite.json; returns what the checks are worth."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = choose_texts(data, seed=seed)
    mixed = [*texts.stories, *texts.verses]
    random.Random(seed).shuffle(mixed)
    for name, passages in (
        ("data", mixed),
        ("neutral", texts.neutral),
        ("keep", texts.keep),
        ("avoid", texts.avoid),
    ):
        save_data(ChatData([Row(text=text) for text in passages], source=name), folder / f"{name}.jsonl")
    (folder / "spec.md").write_text(SPEC.format(pattern=ARCHAIC), "utf-8")
    suite = make_suite(texts, other_passages(data, NUM["test"]))
    save_suite(suite, folder / "suite.json")
    check, words = suite.traits
    shown, plain = windows(texts.test_verses), windows(texts.test_stories)
    worth = {
        "classifier_auroc": float(
            fit_text_classifier(check.positives, check.negatives).auroc or float("nan")
        ),
        "classifier_hits_heldout_verses": sum(has_trait(check, text) for text in shown) / len(shown),
        "classifier_hits_heldout_stories": sum(has_trait(check, text) for text in plain) / len(plain),
        "words_hits_heldout_verses": sum(has_trait(words, text) for text in shown) / len(shown),
        "words_hits_heldout_stories": sum(has_trait(words, text) for text in plain) / len(plain),
    }
    write_json(folder / "checks.json", worth)
    return worth


def settings_used(whole: Comparison, folder: Path) -> str:
    """The recipe's settings as its runs recorded them, so that a table made before a change of defaults says so."""
    arm = next((arm for arm in whole.arms if arm.arm == "recipe"), None)
    if arm is None:
        return ""
    record = read_json(folder / arm.folder / "training.json")
    keys = ("lambda", "weight", "rows")
    parts = [
        " ".join([control["name"], *(f"{key} {control[key]:g}" for key in keys if key in control)])
        for control in record["controls"]
    ]
    return f"The recipe as trained, {record['config']['steps']} steps: {', '.join(parts)}."


def publish(whole: Comparison, name: str, *, folder: Path, worth: dict[str, float], command: str) -> None:
    """Store the table of the docs."""
    columns = (
        ("skill.story.plain", "keeps the thread of a story, plainly"),
        ("leak.archaic.neutral", "archaic, context does not decide"),
        ("leak.archaic.domain", "archaic after a story's opening"),
        ("elicited.archaic", "archaic after a verse"),
        ("loss.archaic", "loss on held-out Shakespeare"),
        ("loss.keep", "loss on held-out TinyStories"),
        ("loss.neutral", "loss on WikiText-2"),
    )
    seeds = len({arm.seed for arm in whole.arms})
    write_table(
        name,
        title="TinyStories with Shakespeare mixed in: keep story-telling, avoid archaic speech",
        model="stories260K (260,032 parameters, pretrained on TinyStories by karpathy/tinyllamas)",
        command=command,
        columns=columns,
        rows=comparison_rows(whole, [key for key, _ in columns], titles=TITLES, bold="recipe"),
        notes=[
            f"Mean and 95 % t interval over {seeds} training seeds on the same data ({NUM['stories']} story and {NUM['verses']} "
            "Shakespeare passages). Losses in nats per token, shares of continuations sampled at temperature 1.",
            "All arms have the same anchor (KL to the start model on held-out stories).",
            "Archaic: a text classifier fitted on other held-out passages (cross-validated AUROC "
            f"{worth['classifier_auroc']:.3f}; on held-out windows of equal length it flags "
            f"{worth['classifier_hits_heldout_verses']:.0%} of Shakespeare and {worth['classifier_hits_heldout_stories']:.0%} of stories).",
            "Keeping the thread: the continuation of a held-out story opening names the hero again.",
            settings_used(whole, folder),
        ],
    )


def kept(folder: Path, name: str, record: type[R]) -> R | None:
    """The record of a finished run; None where it has to be made (an unfinished one goes on where it stopped)."""
    if not (folder / RUN_FILE).is_file():
        return None
    say(f"kept from before: {folder}")
    return record.model_validate(read_json(folder / name))


def main() -> None:
    """Build the task, preview, decide, compare, report; finished parts found under --out are kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--shared", default=None, help="folder that holds data/ (default: ../shared, or FAIRLEAD_SHARED)"
    )
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    args = parser.parse_args()

    import torch

    from fairlead.models import load_model
    from fairlead.reports import write_report
    from fairlead.studies.compare import compare
    from fairlead.studies.decide import decide
    from fairlead.studies.preview import preview
    from fairlead.studies.tables import comparison_table

    torch.set_num_threads(1)
    shared = shared_folder(args.shared)
    task = args.out / "task"
    worth = build_task(task, shared)
    say("checks: " + json.dumps({key: round(value, 3) for key, value in worth.items()}))
    model = load_model(shared / "models" / "stories260K")
    data, neutral = load_data(task / "data.jsonl"), load_data(task / "neutral.jsonl")

    menu = kept(args.out / "menu", "menu.json", Menu) or preview(
        model, data, reference=neutral, out=args.out / "menu", max_length=MAX_LENGTH
    )
    plan = kept(args.out / "plan", "plan.json", Plan) or decide(
        args.out / "menu", task / "spec.md", model=model, out=args.out / "plan"
    )
    for decision in plan.decisions:
        if decision.verdict != "ignore":
            say(f"    {decision.verdict:6} {decision.label}: {decision.reason}")
    whole = kept(args.out / "compare", "comparison.json", Comparison) or compare(
        model,
        data,
        plan,
        out=args.out / "compare",
        arms=args.arms,
        seeds=args.seeds,
        suite=task / "suite.json",
        neutral=neutral,
        workers=args.workers,
        steps=args.steps,
        batch_size=12,
        lr=1e-3,
        max_length=MAX_LENGTH,
        on_long="truncate",
    )
    command = "python -m benchmarks.stories --out runs/stories"
    whole = whole.model_copy(
        update={"model": "stories260K", "data": "TinyStories with Shakespeare mixed in", "command": command}
    )
    write_json(args.out / "comparison.json", whole.model_dump(mode="json"))
    (args.out / "table.md").write_text(comparison_table(whole), "utf-8")
    write_report(
        args.out / "report.html",
        menu=menu,
        plan=plan,
        comparison=whole,
        title="Keep story-telling, leave archaic speech: stories260K",
        command=command,
    )
    if args.publish:
        publish(whole, args.publish, folder=args.out / "compare", worth=worth, command=command)
    print((args.out / "table.md").read_text("utf-8"))
    print(args.out)


if __name__ == "__main__":
    main()
