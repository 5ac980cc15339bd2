"""Train dictionaries for the command line: every combination of sites, widths, k and kinds, from one pass over the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.activations import ActivationStore
from fairlead.core.processes import is_first
from fairlead.core.run import write_json
from fairlead.data import load_data
from fairlead.dictionaries import (
    Dictionary,
    DictionaryConfig,
    combine_specs,
    train_dictionaries,
    train_dictionary,
)

if TYPE_CHECKING:
    from fairlead.models import Model

SUMMARY_FILE = "dictionaries.json"


def train_several(
    model: Model,
    data: str,
    *,
    out: Path,
    sites: Sequence[str] = (),
    widths: Sequence[int] = (),
    ks: Sequence[int] = (),
    kinds: Sequence[str] = (),
    num_tokens: int | None = None,
    seed: int = 0,
    max_examples: int | None = None,
    max_length: int | None = None,
    together: bool = False,
) -> list[dict[str, Any]]:
    """One dictionary into `out`, or several into folders in it, with `dictionaries.json` beside them when all are done.

    Args:
        data: A data set, or the folder of an `ActivationStore`.

    Returns:
        Facts about each: `folder`, `site`, `d_model`, `d_dict`, `metrics`.
    """
    config = DictionaryConfig.make(num_tokens=num_tokens, seed=seed)
    specs = combine_specs(model, config, sites=sites, widths=widths, ks=ks, kinds=kinds)
    if ActivationStore.is_one(data):
        texts = ActivationStore(data)
    else:
        texts = load_data(data, max_records=max_examples)
    if len(specs) == 1:
        only = specs[0]
        found = train_dictionary(
            model,
            texts,
            site=only.site,
            config=only.config,
            out=out,
            max_length=max_length,
            together=together,
        )
        return [_facts(found, out)]
    several = train_dictionaries(model, texts, specs, out=out, max_length=max_length, together=together)
    facts = [_facts(found, out / name) for name, found in several.items()]
    if is_first() or not together:
        write_json(
            out / SUMMARY_FILE, {"dictionaries": [{**each, "folder": each["folder"].name} for each in facts]}
        )
    return facts


def _facts(found: Dictionary, folder: Path) -> dict[str, Any]:
    return {
        "folder": folder,
        "site": str(found.site),
        "d_model": found.d_model,
        "d_dict": found.d_dict,
        "metrics": found.metrics,
    }
