"""What a probe has seen: whose labels fitted or calibrated it, so that no threshold is set on them and no practice hides them.

A probe's record holds short hashes of the entities of its fit and calibration parts (of the text itself, where nobody said what it is
about). Whatever file an answer comes from, and however the file was cut, it is known again by its entity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fairlead.core.claims import ClaimedAnswer
from fairlead.core.errors import ConfigError
from fairlead.core.run import sha256_json
from fairlead.probes.examples import Example, examples_of
from fairlead.probes.head import SpanProbeConfig
from fairlead.probes.parts import part_of

if TYPE_CHECKING:
    from fairlead.probes.span_probe import SpanProbe


def key_of(entity: str, messages: Sequence[dict[str, str]] = (), response: str = "") -> str:
    """A short hash of an entity, or of a prompt and its answer where the entity is unknown."""
    what = ["entity", entity] if entity else ["text", [dict(turn) for turn in messages], response]
    return hashlib.blake2b(sha256_json(what).encode(), digest_size=6).hexdigest()


def seen_keys(examples: Iterable[Example], config: SpanProbeConfig) -> tuple[str, ...]:
    """Keys of all examples but those of the test part, in order."""
    keys = {key_of(e.entity, e.messages, e.response) for e in examples if part_of(e.group, config) != "test"}
    return tuple(sorted(keys))


def held_out(answers: Sequence[ClaimedAnswer], probe: SpanProbe) -> list[ClaimedAnswer]:
    """The answers whose entities the probe has no labels of.

    Probes of before entities were kept tell their own data only: of these, their test part is left.
    """
    if probe.seen:
        seen = set(probe.seen)
        return [one for one in answers if key_of(one.entity, one.messages, one.response) not in seen]
    try:
        same = sha256_json([e.model_dump(mode="json") for e in examples_of(answers)]) == probe.data_sha256
    except ConfigError:  # no labelled claim among them
        return list(answers)
    if not same:
        return list(answers)
    return [one for one in answers if part_of(one.entity or one.id, probe.config) == "test"]


def num_seen(entities: Iterable[str], probe: object) -> int:
    """How many of these entities' labels the probe was fitted or calibrated on; 0 where it does not tell."""
    seen = set(getattr(probe, "seen", ()))
    return sum(bool(entity) and key_of(entity) in seen for entity in entities)
