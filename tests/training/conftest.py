"""The micro world for these tests (`tests/training/micro_world.py`, loaded by its place: tests are no package)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PLACE = Path(__file__).resolve().parents[1] / "training" / "micro_world.py"
if "micro_world" not in sys.modules:
    spec = importlib.util.spec_from_file_location("micro_world", PLACE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["micro_world"] = module
    spec.loader.exec_module(module)
REWARDS = PLACE.with_name("reward_world.py")
if "reward_world" not in sys.modules:
    spec = importlib.util.spec_from_file_location("reward_world", REWARDS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reward_world"] = module
    spec.loader.exec_module(module)
world = sys.modules["micro_world"]
micro, tiny, score, _quiet = world.micro, world.tiny, world.score, world._quiet
