"""Language models as judges and writers: one small protocol, endpoints, and a scripted stand-in."""

from fairlead.llm.connect import connect
from fairlead.llm.protocol import LanguageModel, Messages
from fairlead.llm.quoting import DATA_RULE, quote_data, with_data_rule
from fairlead.llm.scripted import Call, ScriptedModel

__all__ = [
    "DATA_RULE",
    "Call",
    "LanguageModel",
    "Messages",
    "ScriptedModel",
    "connect",
    "quote_data",
    "with_data_rule",
]
