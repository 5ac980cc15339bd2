"""The pocket world: a synthetic chat world with exact ground truth, and the small model trained on it."""

from fairlead.organisms.checkpoint import pocket_path
from fairlead.organisms.items import Claim, Item
from fairlead.organisms.traits import Trait
from fairlead.organisms.world import World

__all__ = ["Claim", "Item", "Trait", "World", "pocket_path"]
