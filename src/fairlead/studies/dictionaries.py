"""Train dictionaries: every combination of sites, widths, k and kinds from one pass over the model, or one over several sites at once.

A transcoder goes from a site to another, a crosscoder lies over several sites or over two models; both are trained one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.activations import ActivationStore
from fairlead.core.errors import ConfigError
from fairlead.core.processes import is_first
from fairlead.core.run import write_json
from fairlead.data import ChatData, load_data
from fairlead.dictionaries import (
    Dictionary,
    DictionaryConfig,
    combine_specs,
    train_crosscoder,
    train_dictionaries,
    train_dictionary,
    train_transcoder,
)

if TYPE_CHECKING:
    from fairlead.models import Model

SUMMARY_FILE = "dictionaries.json"


JOINT = ("transcoder", "crosscoder")  # kinds over several sites


def train_several(
    model: Model,
    data: str,
    *,
    out: Path,
    config: DictionaryConfig | None = None,
    sites: Sequence[str] = (),
    widths: Sequence[int] = (),
    ks: Sequence[int] = (),
    kinds: Sequence[str] = (),
    to_site: str | None = None,
    against: Model | None = None,
    max_examples: int | None = None,
    max_length: int | None = None,
    together: bool = False,
) -> list[dict[str, Any]]:
    """One dictionary into `out`, or several into folders in it, with `dictionaries.json` beside them when all are done.

    Args:
        data: A data set, or the folder of an `ActivationStore`.
        config: What is not combined.
        to_site: Where a transcoder writes.
        against: The second model of a crosscoder over two models.

    Returns:
        Facts about each: `folder`, `kind`, `site`, `d_model`, `d_dict`, `metrics`.

    Raises:
        ConfigError: Sites or models that do not go with the kind, several processes for a transcoder or crosscoder, or limits on a store.
        DictionaryError: As `train_dictionary`.
    """
    config = config or DictionaryConfig.make()
    named = kinds or [config.kind]
    if set(named) & set(JOINT) or to_site is not None or against is not None:
        if max(len(named), len(widths), len(ks)) > 1:
            raise ConfigError(
                "a transcoder or crosscoder is trained by itself. Next: give one --kind, --latents and --k."
            )
        one = DictionaryConfig.make(
            config.model_dump(), kind=named[0], d_dict=next(iter(widths), None), k=next(iter(ks), None)
        )
        if together:
            raise ConfigError(
                f"a {named[0]} is trained by one process: several would each train a whole copy into one folder. "
                "Next: start it without torchrun, or choose batch_topk, topk or matryoshka."
            )
        texts = _texts(data, max_examples, max_length)
        joint = train_joint(
            model, texts, one, sites=sites, to_site=to_site, against=against, out=out, max_length=max_length
        )
        return [_facts(joint, out)]
    specs = combine_specs(model, config, sites=sites, widths=widths, ks=ks, kinds=kinds)
    texts = _texts(data, max_examples, max_length)
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


def _texts(data: str, max_examples: int | None, max_length: int | None) -> ChatData | ActivationStore:
    """The texts, or the store of them."""
    if not ActivationStore.is_one(data):
        return load_data(data, max_records=max_examples)
    if max_examples is not None or max_length is not None:
        raise ConfigError(
            f"{data}: a store is trained on as it is; its texts are neither fewer nor shorter. "
            "Next: leave --max-examples and --max-length out, or harvest again with them."
        )
    return ActivationStore(data)


def train_joint(
    model: Model,
    data: ChatData | ActivationStore,
    config: DictionaryConfig,
    *,
    out: Path,
    sites: Sequence[str] = (),
    to_site: str | None = None,
    against: Model | None = None,
    max_length: int | None = None,
) -> Dictionary:
    """Train a transcoder or a crosscoder.

    Args:
        sites: Where a transcoder reads (None: the input of the MLP that it writes for), or all sites of a crosscoder.

    Raises:
        ConfigError: Sites or models that do not go with the kind.
    """
    if (to_site is not None) != (config.kind == "transcoder"):
        raise ConfigError(
            "a transcoder, and only it, goes from a site to another. Next: use --kind transcoder with --site and --to."
        )
    if config.kind != "crosscoder" and (len(sites) > 1 or against is not None):
        raise ConfigError(
            f"a {config.kind} has one model and one --site to read. Next: use --kind crosscoder, or give one --site and no --against."
        )
    if to_site is not None:
        start = sites[0] if sites else to_site.replace("mlp_out", "mlp_in")
        return train_transcoder(
            model, data, site=start, to_site=to_site, config=config, out=out, max_length=max_length
        )
    models = [model] if against is None else [model, against]
    places = list(sites) or [str(model.default_site())]
    return train_crosscoder(models, data, sites=places, config=config, out=out, max_length=max_length)


def _facts(found: Dictionary, folder: Path) -> dict[str, Any]:
    return {
        "folder": folder,
        "kind": found.config.get("kind", found.architecture),
        "site": str(found.site),
        "d_model": found.d_model,
        "d_dict": found.d_dict,
        "metrics": found.metrics,
    }
