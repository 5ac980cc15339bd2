"""Probes: readouts fitted on activations, of answers (`Probe`) and of stretches of tokens (`SpanProbe`), saved with site and model."""

from fairlead.probes.encoding import EncodedAnswer, encode_answer, encode_answers
from fairlead.probes.examples import Example, Stretch, examples_of
from fairlead.probes.fitting import FittedProbe, fit_span_probe
from fairlead.probes.head import SpanProbeConfig
from fairlead.probes.pooling import pool_answers
from fairlead.probes.probe import Probe, fit_probe, load_probe, probe_folder
from fairlead.probes.span_probe import SpanProbe, load_span_probe

__all__ = [
    "EncodedAnswer",
    "Example",
    "FittedProbe",
    "Probe",
    "SpanProbe",
    "SpanProbeConfig",
    "Stretch",
    "encode_answer",
    "encode_answers",
    "examples_of",
    "fit_probe",
    "fit_span_probe",
    "load_probe",
    "load_span_probe",
    "pool_answers",
    "probe_folder",
]
