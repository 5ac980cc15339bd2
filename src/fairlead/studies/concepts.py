"""List the concepts of a dictionary on some data: latents that act alike, labelled, with examples."""

from __future__ import annotations

from pathlib import Path

from fairlead.concepts import build_concepts
from fairlead.core.records import Concept
from fairlead.core.run import Run
from fairlead.data import ChatData, encode, load_data
from fairlead.dictionaries import Dictionary, load_dictionary
from fairlead.models import Model, load_model

CONCEPTS_FILE = "concepts.json"


def list_concepts(
    model: Model | str | Path,
    dictionary: Dictionary | str | Path,
    data: ChatData | str | Path,
    *,
    out: str | Path | None = None,
    num_examples: int = 8,
    max_length: int | None = None,
    overwrite: bool = False,
) -> list[Concept]:
    """Group and label a dictionary's latents by what they do on a data set, most frequent first.

    Args:
        model: The model, or its name or folder.
        dictionary: A dictionary of that model, or its folder.
        data: Texts on which the latents are looked at.
        out: Run folder for `concepts.json`; nothing is written where None.
        num_examples: Contexts kept for each concept.
        max_length: Longer texts are cut; the model's limit where None.
        overwrite: Replace a finished run.

    Raises:
        DictionaryError: The dictionary was made for another model.
        RunError: The run folder exists or is locked.
    """
    model = load_model(model) if isinstance(model, str | Path) else model
    dictionary = load_dictionary(dictionary) if isinstance(dictionary, str | Path) else dictionary
    data = load_data(data) if isinstance(data, str | Path) else data
    dictionary.check(model)
    encoded = encode(data, model.tokenizer, max_length=max_length or model.max_length, on_long="truncate")
    if out is None:
        return _found(model, dictionary, encoded, num_examples)
    settings = {"num_examples": num_examples, "max_length": max_length, "model": model.name}
    inputs = {"model": model.fingerprint, "dictionary": dictionary.sha256, "data": data.sha256}
    with Run.start(out, study="concepts", config=settings, inputs=inputs, overwrite=overwrite) as run:
        found = _found(model, dictionary, encoded, num_examples)
        run.write_json(CONCEPTS_FILE, [concept.model_dump(mode="json") for concept in found])
        run.finish({"concepts": len(found)})
    return found


def _found(model: Model, dictionary: Dictionary, encoded: list, num_examples: int) -> list[Concept]:
    found = build_concepts(model, dictionary, encoded, num_examples=num_examples)
    return sorted(found, key=lambda concept: -concept.density)
