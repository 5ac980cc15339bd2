"""Which part of the data an entity belongs to: fit, calibration or test, by a hash of its name and the seed."""

from __future__ import annotations

import hashlib

from fairlead.probes.head import SpanProbeConfig

PARTS = ("fit", "calibration", "test")


def part_of(group: str, config: SpanProbeConfig) -> str:
    """Which part an entity belongs to; depends on its name and the seed only."""
    digest = hashlib.blake2b(f"{config.seed}:{group}".encode(), digest_size=8).digest()
    draw = int.from_bytes(digest, "big") / 2**64
    if draw < config.test_share:
        return "test"
    return "calibration" if draw < config.test_share + config.calibration_share else "fit"
