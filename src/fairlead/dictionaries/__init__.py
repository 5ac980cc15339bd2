"""Dictionaries: sparse autoencoders, transcoders and crosscoders of a model's activations, their training, files and quality."""

from fairlead.dictionaries import batch_topk as _batch_topk  # these register their kinds
from fairlead.dictionaries import jumprelu as _jumprelu
from fairlead.dictionaries import matryoshka as _matryoshka
from fairlead.dictionaries import topk as _topk
from fairlead.dictionaries.block_sparse import BlockSparse
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.crosscoder import Crosscoder
from fairlead.dictionaries.dictionary import Dictionary
from fairlead.dictionaries.evaluation import evaluate_dictionary, outside_span, token_loss
from fairlead.dictionaries.joint import JointSource, Place, harvest_joint, train_crosscoder, train_transcoder
from fairlead.dictionaries.kinds import find_kind, register_kind
from fairlead.dictionaries.latent_scaling import LatentScaling, latent_scaling
from fairlead.dictionaries.loading import is_own_folder, load_dictionary
from fairlead.dictionaries.sparsify import save_sparsify
from fairlead.dictionaries.training import (
    DictionarySpec,
    combine_specs,
    fit_dictionary,
    train_dictionaries,
    train_dictionary,
)
from fairlead.dictionaries.transcoder import Transcoder

__all__ = [
    "BlockSparse",
    "Crosscoder",
    "Dictionary",
    "DictionaryConfig",
    "DictionarySpec",
    "JointSource",
    "LatentScaling",
    "Place",
    "Transcoder",
    "combine_specs",
    "evaluate_dictionary",
    "find_kind",
    "fit_dictionary",
    "harvest_joint",
    "is_own_folder",
    "latent_scaling",
    "load_dictionary",
    "outside_span",
    "register_kind",
    "save_sparsify",
    "token_loss",
    "train_crosscoder",
    "train_dictionaries",
    "train_dictionary",
    "train_transcoder",
]
del _batch_topk, _jumprelu, _matryoshka, _topk
