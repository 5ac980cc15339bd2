"""What every test shares: one thread, no network, no telemetry, and the marks for what may be absent."""

from __future__ import annotations

import os
import sys

# Before torch and transformers are imported: they read these once.
os.environ.update(
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    DO_NOT_TRACK="1",
)

from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes and dtypes in signatures are checked at every call. Only where they stand: the hook reads every annotation
# of a module, and those that name a type of a higher layer (imported for type checkers only) cannot be read.
CHECKED = (
    "fairlead.probes.pooling",
    "fairlead.probes.probe",
    "fairlead.training.controls",
    "fairlead.training.directions",
    "fairlead.training.logits",
    "fairlead.training.tables",
)
install_import_hook(CHECKED, "beartype.beartype")

settings.register_profile("fairlead", deadline=None, database=None, max_examples=50)
settings.load_profile("fairlead")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with a reason, what this machine cannot run."""
    no_data = pytest.mark.skip(reason=f"real data is not here: {REAL_DATA}")
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "realdata" in item.keywords and not REAL_DATA.is_dir():
            item.add_marker(no_data)
        if "gpu" in item.keywords and not _has_cuda():
            item.add_marker(no_gpu)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; a test that uses it carries the marker `realdata`."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data is not here: {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
