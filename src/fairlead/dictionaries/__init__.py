"""Dictionaries: sparse autoencoders of a model's activations, their training, files and quality."""

from fairlead.dictionaries import batch_topk as _batch_topk  # the three register their kinds
from fairlead.dictionaries import matryoshka as _matryoshka
from fairlead.dictionaries import topk as _topk
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.dictionary import Dictionary, load_dictionary
from fairlead.dictionaries.evaluation import evaluate_dictionary, outside_span, token_loss
from fairlead.dictionaries.kinds import find_kind, register_kind
from fairlead.dictionaries.training import (
    DictionarySpec,
    combine_specs,
    fit_dictionary,
    train_dictionaries,
    train_dictionary,
)

__all__ = [
    "Dictionary",
    "DictionaryConfig",
    "DictionarySpec",
    "combine_specs",
    "evaluate_dictionary",
    "find_kind",
    "fit_dictionary",
    "load_dictionary",
    "outside_span",
    "register_kind",
    "token_loss",
    "train_dictionaries",
    "train_dictionary",
]
del _batch_topk, _matryoshka, _topk
