"""Train a dictionary of any kind: an autoencoder at one site, a transcoder between two, a crosscoder over several or over two models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fairlead.core.errors import ConfigError
from fairlead.data import ChatData, load_data
from fairlead.dictionaries import (
    Dictionary,
    DictionaryConfig,
    train_crosscoder,
    train_dictionary,
    train_transcoder,
)
from fairlead.models import Model, load_model


def train_any(
    model: Model | str | Path,
    data: ChatData | str | Path,
    *,
    config: DictionaryConfig | None = None,
    sites: Sequence[str] = (),
    to_site: str | None = None,
    against: Model | str | Path | None = None,
    out: str | Path | None = None,
    max_length: int | None = None,
) -> Dictionary:
    """Train the kind that `config` names.

    Args:
        model: The model, or its name or folder.
        data: Texts.
        sites: Where: one site, or several for a crosscoder; the model's default site where none is given.
        to_site: Where a transcoder writes.
        against: A second model for a crosscoder over two models.
        out: Folder; the same call goes on with an unfinished run.
        max_length: Longer texts are cut; the model's limit where None.

    Raises:
        ConfigError: Sites or models that do not go with the kind.
        DictionaryError: As `train_dictionary`.
    """
    config = config or DictionaryConfig.make()
    kind = config.kind
    if (to_site is not None) != (kind == "transcoder"):
        raise ConfigError(
            "a transcoder, and only it, goes from a site to another. Next: use --kind transcoder with --site and --to."
        )
    if kind != "crosscoder" and (len(sites) > 1 or against is not None):
        raise ConfigError(
            f"a {kind} has one site and one model. Next: use --kind crosscoder, or give one --site and no --against."
        )
    model = load_model(model) if isinstance(model, str | Path) else model
    data = load_data(data) if isinstance(data, str | Path) else data
    common = {"config": config, "out": out, "max_length": max_length}
    if kind == "crosscoder":
        second = load_model(against) if isinstance(against, str | Path) else against
        models = [model] if second is None else [model, second]
        return train_crosscoder(models, data, sites=list(sites) or [model.default_site()], **common)
    if to_site is not None:
        start = sites[0] if sites else to_site.replace("mlp_out", "mlp_in")
        return train_transcoder(model, data, site=start, to_site=to_site, **common)
    return train_dictionary(model, data, site=sites[0] if sites else None, **common)
