"""What is measured on a model after a training: answers, losses, predictions, monitorability."""

from fairlead.training.verification.answers import Resolvers, measure_answers, measure_losses
from fairlead.training.verification.monitoring import (
    ProbeData,
    make_probe_data,
    measure_dictionary,
    measure_probes,
)
from fairlead.training.verification.predictions import Predicted, measure_predictions

__all__ = [
    "Predicted",
    "ProbeData",
    "Resolvers",
    "make_probe_data",
    "measure_answers",
    "measure_dictionary",
    "measure_losses",
    "measure_predictions",
    "measure_probes",
]
