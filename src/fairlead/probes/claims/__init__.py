"""Claims of real models: splitting answers, and verifiers that label what was split."""

from fairlead.probes.claims.cost import Cost
from fairlead.probes.claims.localising import ProbeSplitter
from fairlead.probes.claims.retrieval import Evidence, Passage
from fairlead.probes.claims.splitting import Split, place_quotes, split_claims, split_sentences, splitter
from fairlead.probes.claims.verifying import (
    EvidenceVerifier,
    HumanVerifier,
    TableVerifier,
    Verifier,
    read_sheet,
    write_sheet,
)

__all__ = [
    "Cost",
    "Evidence",
    "EvidenceVerifier",
    "HumanVerifier",
    "Passage",
    "ProbeSplitter",
    "Split",
    "TableVerifier",
    "Verifier",
    "place_quotes",
    "read_sheet",
    "split_claims",
    "split_sentences",
    "splitter",
    "write_sheet",
]
