"""How good a dictionary is: reconstruction beside baselines, density, stability over seeds, recovery of planted features."""

from __future__ import annotations

from pathlib import Path

from fairlead.core.run import Run, read_json
from fairlead.data import ChatData, encode, load_data
from fairlead.dictionaries import Dictionary, load_dictionary
from fairlead.dictionaries.quality import DictionaryQuality, measure_quality
from fairlead.models import Model, load_model

QUALITY_FILE = "quality.json"


def evaluate(
    model: Model | str | Path,
    dictionary: Dictionary | str | Path,
    data: ChatData | str | Path,
    *,
    against: Dictionary | str | Path | None = None,
    second_model: Model | str | Path | None = None,
    planted_tokens: int = 0,
    max_tokens: int = 20_000,
    max_length: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> DictionaryQuality:
    """Measure a dictionary on a data set, best held out from its training.

    Args:
        model: The model, or its name or folder.
        dictionary: A dictionary of that model, its folder, or a `hf:` name.
        data: Texts.
        against: A second dictionary of the same site (another seed): how much of the first comes back in it.
        second_model: The other model of a crosscoder over two.
        planted_tokens: Also train a dictionary of the same kind on so many tokens of planted features.
        max_tokens: Tokens to measure on.
        max_length: Longer texts are cut; the model's limit where None.
        out: Run folder for `quality.json`; nothing is written where None.
        overwrite: Replace a finished run.

    Raises:
        DictionaryError: The dictionary was made for another model.
        RunError: The run folder exists or is locked.
    """
    model = load_model(model) if isinstance(model, str | Path) else model
    dictionary = load_dictionary(dictionary) if isinstance(dictionary, str | Path) else dictionary
    second = load_dictionary(against) if isinstance(against, str | Path) else against
    other = load_model(second_model) if isinstance(second_model, str | Path) else second_model
    data = load_data(data) if isinstance(data, str | Path) else data
    encoded = encode(data, model.tokenizer, max_length=max_length or model.max_length, on_long="truncate")

    def measured() -> DictionaryQuality:
        return measure_quality(
            model,
            dictionary,
            encoded,
            against=second,
            second=other,
            planted_tokens=planted_tokens,
            max_tokens=max_tokens,
        )

    if out is None:
        return measured()
    settings = {"max_tokens": max_tokens, "max_length": max_length, "planted_tokens": planted_tokens}
    inputs = {"model": model.fingerprint, "dictionary": dictionary.sha256, "data": data.sha256}
    inputs |= {"against": second.sha256} if second is not None else {}
    inputs |= {"second_model": other.fingerprint} if other is not None else {}
    with Run.start(out, study="dict evaluate", config=settings, inputs=inputs, overwrite=overwrite) as run:
        found = measured()
        run.write_json(QUALITY_FILE, found.model_dump(mode="json"))
        run.finish({"fvu": found.metrics["fvu"], "l0": found.metrics["l0"]})
    return found


def read_quality(folder: str | Path) -> DictionaryQuality:
    """What a finished run measured."""
    return DictionaryQuality.model_validate(read_json(Path(folder) / QUALITY_FILE))
