"""The texts of a preview: its corpus, its reference, ordinary texts for the judge, and the model's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairlead.core.run import Run, read_json
from fairlead.data import ChatData, Encoded, Row, as_messages, encode, load_data
from fairlead.models import Model

CORPUS_ROWS = 6000
REFERENCE_ROWS = 512
OWN_ROWS = 192
BACKGROUND_ROWS = 96


def load_optional(source: ChatData | str | Path | None) -> ChatData | None:
    """A data set as it is, or loaded; None stays None."""
    return source if isinstance(source, ChatData) or source is None else load_data(source)


def encode_rows(model: Model, data: ChatData, limit: int) -> list[Encoded]:
    """Rows as tokens, long ones cut."""
    return encode(data, model.tokenizer, max_length=limit, on_long="truncate")


def chats(records: Sequence[dict[str, Any]], source: str) -> ChatData:
    """Chats as a data set."""
    return ChatData([Row(messages=as_messages(record["messages"])) for record in records], source=source)


def own_answers(run: Run, model: Model, data: ChatData, limit: int, seed: int) -> ChatData:
    """The model's own greedy answers to the first prompts of the data; the data itself where there are no prompts."""
    path = run.path("own_answers.json")
    if path.is_file():
        return chats(read_json(path), "the model's own answers")
    rows = [row for row in data.rows[:OWN_ROWS] if row.messages is not None and row.prompt_messages]
    if not rows:
        starts = [(row.text or row.response)[:60] for row in data.rows[: OWN_ROWS // 4]]
        answers = model.generate(starts, max_new_tokens=min(64, limit // 2), seed=seed, chat=False)
        return ChatData(
            [Row(text=start + answer) for start, answer in zip(starts, answers, strict=True)], source="own"
        )
    prompts = [[m.as_dict() for m in row.prompt_messages] for row in rows]
    answers = model.generate(prompts, max_new_tokens=min(48, limit // 2), seed=seed, progress="own answers")
    records = [
        {"messages": [*prompt, {"role": "assistant", "content": answer.strip() or "."}]}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    run.write_json("own_answers.json", records)
    return chats(records, "the model's own answers")


def choose_texts(
    model: Model, data: ChatData, corpus: ChatData | None, own: ChatData, seed: int
) -> tuple[ChatData, ChatData, ChatData | None]:
    """Texts for dictionary and concepts, background for the judge, and the usual reference (None: there is no usual data)."""
    if corpus is not None:
        share = REFERENCE_ROWS / len(corpus)
        part = corpus.split(share, seed)[0] if share < 1 else corpus
        return corpus, part.subset(range(min(BACKGROUND_ROWS, len(part)))), part
    if model.name == "organism:pocket":
        from fairlead.organisms import World

        world = World()
        texts = chats(list(world.corpus(CORPUS_ROWS, seed=1000 + seed)), "the pocket world's corpus")
        usual = chats(world.neutral(REFERENCE_ROWS, seed=1000 + seed), "the pocket world's neutral chats")
        return texts, usual.subset(range(BACKGROUND_ROWS)), usual
    both = ChatData([*data.rows, *own.rows], source="data and own answers")
    return both, own.subset(range(min(BACKGROUND_ROWS, len(own)))), None


def choose_reference(
    model: Model, reference: ChatData | str | Path, usual: ChatData | None, own: ChatData, limit: int
) -> tuple[list[Encoded] | None, str]:
    """The reference as tokens with its name; None where there is none."""
    if isinstance(reference, ChatData):
        return encode_rows(model, reference, limit), reference.source
    if reference == "none":
        return None, ""
    if reference == "auto" and usual is not None:
        return encode_rows(model, usual, limit), f"usual: {usual.source}"
    name = "self: the same prompts answered by the model (tells traits, blind to skills that both show)"
    return encode_rows(model, own, limit), name
