"""Build a catalogue: the concepts of a dictionary, on some data, with examples, labels and statistics."""

from __future__ import annotations

from pathlib import Path

from fairlead.concepts import Catalogue, ConceptStatistics, Entry, LabelScores, build_concepts
from fairlead.concepts.store import DATABASE, write_database
from fairlead.core.run import Run
from fairlead.data import ChatData, encode, load_data
from fairlead.dictionaries import Dictionary, load_dictionary
from fairlead.models import Model, load_model


def build_catalogue(
    model: Model | str | Path,
    dictionary: Dictionary | str | Path,
    data: ChatData | str | Path,
    *,
    out: str | Path,
    num_examples: int = 8,
    max_length: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Catalogue:
    """Build the catalogue of a dictionary in the folder `out` and open it.

    Raises:
        DictionaryError: The dictionary was made for another model.
        RunError: The run folder exists or is locked.
    """
    model = load_model(model) if isinstance(model, str | Path) else model
    dictionary = load_dictionary(dictionary) if isinstance(dictionary, str | Path) else dictionary
    data = load_data(data) if isinstance(data, str | Path) else data
    dictionary.check(model)
    encoded = encode(data, model.tokenizer, max_length=max_length or model.max_length, on_long="truncate")
    settings = {"num_examples": num_examples, "max_length": max_length, "model": model.name}
    inputs = {"model": model.fingerprint, "dictionary": dictionary.sha256, "data": data.sha256}
    with Run.start(
        out, study="concepts", config=settings, inputs=inputs, seed=seed, overwrite=overwrite
    ) as run:
        found = build_concepts(model, dictionary, encoded, num_examples=num_examples, seed=seed)
        if not dictionary.source:
            dictionary.save(run.path("dictionary"))
        meta = {
            "model": model.name,
            "model_fingerprint": model.fingerprint,
            "dictionary": "dictionary",
            "dictionary_path": str(Path(dictionary.source).resolve()),
            "dictionary_sha256": dictionary.sha256,
            "site": str(dictionary.site),
            "data": data.source,
            "num_concepts": len(found),
        }
        entries = [
            Entry(
                concept=concept,
                statistics=ConceptStatistics(density=concept.density, mean=concept.density),
                scores=LabelScores(detection=concept.label_score),
                words=tuple((word, 1.0 / (1 + rank)) for rank, word in enumerate(concept.tokens)),
            )
            for concept in sorted(found, key=lambda concept: -concept.density)
        ]
        write_database(run.path(DATABASE), entries, meta=meta)
        run.finish({"concepts": len(found)})
    return Catalogue.open(out)
