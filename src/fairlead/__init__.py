"""Fairlead: see what data would teach a model, say what it should learn, train so, and prove it.

The public names are imported on first use (PEP 562), so that `import fairlead` and
`fairlead --help` load neither torch nor transformers.

```python
import fairlead as fl

model = fl.load_model("organism:pocket")
data = fl.load_data("addition_pirate.jsonl")
menu = fl.preview(model, data)
plan = fl.decide(menu, fl.load_spec("spec.md"), judge="examples")
run = fl.train(model, data, plan, out="runs/first")
print(fl.verify(run))
```
"""

from __future__ import annotations

import os
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

# Usage pings of TRL and huggingface_hub: both read this once, when huggingface_hub is first imported.
# Export HF_HUB_DISABLE_TELEMETRY=0 to send them.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from fairlead.concepts import Catalogue as Catalogue
    from fairlead.concepts import EditSet as EditSet
    from fairlead.concepts import Variant as Variant
    from fairlead.concepts import autosteer as autosteer
    from fairlead.concepts import build_concepts as build_concepts
    from fairlead.core.claims import ClaimedAnswer as ClaimedAnswer
    from fairlead.core.claims import ClaimSpan as ClaimSpan
    from fairlead.core.config import Config as Config
    from fairlead.core.errors import CatalogueError as CatalogueError
    from fairlead.core.errors import ConfigError as ConfigError
    from fairlead.core.errors import DataError as DataError
    from fairlead.core.errors import DictionaryError as DictionaryError
    from fairlead.core.errors import FairleadError as FairleadError
    from fairlead.core.errors import JudgeError as JudgeError
    from fairlead.core.errors import LLMError as LLMError
    from fairlead.core.errors import MissingDependencyError as MissingDependencyError
    from fairlead.core.errors import ModelError as ModelError
    from fairlead.core.errors import OrganismError as OrganismError
    from fairlead.core.errors import RunError as RunError
    from fairlead.core.errors import SiteError as SiteError
    from fairlead.core.errors import SpecError as SpecError
    from fairlead.core.errors import TrainingError as TrainingError
    from fairlead.core.nouns import Direction as Direction
    from fairlead.core.nouns import LinearReadout as LinearReadout
    from fairlead.core.nouns import Readout as Readout
    from fairlead.core.nouns import SpanReadout as SpanReadout
    from fairlead.core.records import Clause as Clause
    from fairlead.core.records import Concept as Concept
    from fairlead.core.records import Decision as Decision
    from fairlead.core.records import Menu as Menu
    from fairlead.core.records import MenuLine as MenuLine
    from fairlead.core.records import Plan as Plan
    from fairlead.core.records import Spec as Spec
    from fairlead.core.results import Comparison as Comparison
    from fairlead.core.results import Measure as Measure
    from fairlead.core.results import Verification as Verification
    from fairlead.core.run import Run as Run
    from fairlead.core.site import Site as Site
    from fairlead.data import ChatData as ChatData
    from fairlead.data import load_data as load_data
    from fairlead.data import load_spec as load_spec
    from fairlead.data import load_suite as load_suite
    from fairlead.data import parse_spec as parse_spec
    from fairlead.dictionaries import Dictionary as Dictionary
    from fairlead.dictionaries import DictionaryConfig as DictionaryConfig
    from fairlead.dictionaries import load_dictionary as load_dictionary
    from fairlead.dictionaries import train_dictionary as train_dictionary
    from fairlead.guard import Guard as Guard
    from fairlead.guard import Policy as Policy
    from fairlead.llm import connect as connect
    from fairlead.models import Model as Model
    from fairlead.models import load_model as load_model
    from fairlead.probes import Probe as Probe
    from fairlead.probes import SpanProbe as SpanProbe
    from fairlead.probes import fit_probe as fit_probe
    from fairlead.probes import fit_span_probe as fit_span_probe
    from fairlead.probes import load_probe as load_probe
    from fairlead.probes import load_span_probe as load_span_probe
    from fairlead.reports import write_report as write_report
    from fairlead.studies.compare import compare as compare
    from fairlead.studies.decide import decide as decide
    from fairlead.studies.plan import plan_controls as plan_controls
    from fairlead.studies.preview import preview as preview
    from fairlead.studies.rewards import train_rewards as train_rewards
    from fairlead.studies.train import train as train
    from fairlead.studies.verify import verify as verify

# Where each public name lives; tests/test_public.py keeps this table and the imports above together.
_HOMES: dict[str, tuple[str, ...]] = {
    "fairlead.concepts": ("Catalogue", "EditSet", "Variant", "autosteer", "build_concepts"),
    "fairlead.core.claims": ("ClaimSpan", "ClaimedAnswer"),
    "fairlead.core.config": ("Config",),
    "fairlead.core.errors": (
        "CatalogueError",
        "ConfigError",
        "DataError",
        "DictionaryError",
        "FairleadError",
        "JudgeError",
        "LLMError",
        "MissingDependencyError",
        "ModelError",
        "OrganismError",
        "RunError",
        "SiteError",
        "SpecError",
        "TrainingError",
    ),
    "fairlead.core.nouns": ("Direction", "LinearReadout", "Readout", "SpanReadout"),
    "fairlead.core.records": ("Clause", "Concept", "Decision", "Menu", "MenuLine", "Plan", "Spec"),
    "fairlead.core.results": ("Comparison", "Measure", "Verification"),
    "fairlead.core.run": ("Run",),
    "fairlead.core.site": ("Site",),
    "fairlead.data": ("ChatData", "load_data", "load_spec", "load_suite", "parse_spec"),
    "fairlead.dictionaries": ("Dictionary", "DictionaryConfig", "load_dictionary", "train_dictionary"),
    "fairlead.guard": ("Guard", "Policy"),
    "fairlead.llm": ("connect",),
    "fairlead.models": ("Model", "load_model"),
    "fairlead.probes": ("Probe", "SpanProbe", "fit_probe", "fit_span_probe", "load_probe", "load_span_probe"),
    "fairlead.reports": ("write_report",),
    # the studies by their modules: a package attribute of the same name may be the module itself
    "fairlead.studies.compare": ("compare",),
    "fairlead.studies.decide": ("decide",),
    "fairlead.studies.plan": ("plan_controls",),
    "fairlead.studies.preview": ("preview",),
    "fairlead.studies.rewards": ("train_rewards",),
    "fairlead.studies.train": ("train",),
    "fairlead.studies.verify": ("verify",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

try:
    __version__ = metadata.version("fairlead")
except metadata.PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+source"
__all__ = sorted([*_HOME_OF, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fairlead' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
