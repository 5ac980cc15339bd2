"""Data sets, loss masks, batches, specs and suites: everything that goes into a training or a measurement."""

from typing import TYPE_CHECKING, Any

from fairlead.data.classifier import TextClassifier, fit_text_classifier
from fairlead.data.default_suite import suite_from
from fairlead.data.encode import Encoded, check_aligned, encode, encode_aligned, response_positions
from fairlead.data.load import load_data, save_data
from fairlead.data.packed import PackedTexts, TextsOnDemand
from fairlead.data.pieces import token_text
from fairlead.data.rows import ChatData, Message, Row, as_messages, as_rows, with_system
from fairlead.data.spec import load_spec, parse_spec
from fairlead.data.spec_text import explain_spec, render_spec, spec_template
from fairlead.data.suite import (
    NeutralChat,
    Sampling,
    SkillItem,
    SkillSet,
    Suite,
    TraitCheck,
    has_trait,
    is_correct,
    load_suite,
    save_suite,
    trait_classifier,
)
from fairlead.data.template import encode_prompt, has_chat_template

if TYPE_CHECKING:
    from fairlead.data.batches import Batch, collate, iter_batches, pack

__all__ = [
    "Batch",
    "ChatData",
    "Encoded",
    "Message",
    "NeutralChat",
    "PackedTexts",
    "Row",
    "Sampling",
    "SkillItem",
    "SkillSet",
    "Suite",
    "TextClassifier",
    "TextsOnDemand",
    "TraitCheck",
    "as_messages",
    "as_rows",
    "check_aligned",
    "collate",
    "encode",
    "encode_aligned",
    "encode_prompt",
    "explain_spec",
    "fit_text_classifier",
    "has_chat_template",
    "has_trait",
    "is_correct",
    "iter_batches",
    "load_data",
    "load_spec",
    "load_suite",
    "pack",
    "parse_spec",
    "render_spec",
    "response_positions",
    "save_data",
    "save_suite",
    "spec_template",
    "suite_from",
    "token_text",
    "trait_classifier",
    "with_system",
]

_LAZY = {
    "Batch": "batches",
    "collate": "batches",
    "iter_batches": "batches",
    "pack": "batches",
}  # these need torch


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
