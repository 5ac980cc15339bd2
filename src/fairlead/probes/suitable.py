"""What guards and rewards may read: a probability that something unwanted is said, as high as it is unwanted."""

from __future__ import annotations

from fairlead.core.errors import ConfigError

UNSUPPORTED = "unsupported"


def check_label(readout: object, label: str | None = None, *, where: str = "the probe") -> None:
    """Confirm that what a readout tells is unwanted; a readout without a name is taken at its user's word.

    Args:
        readout: A probe, or any other readout.
        label: What the user says is unwanted, beside "unsupported".
        where: How messages call the readout.

    Raises:
        ConfigError: It tells something else: of a probe for right corrections the most wanted would be flagged, or paid for.
    """
    name = getattr(readout, "name", None) or getattr(getattr(readout, "direction", None), "name", "")
    if name and name not in (UNSUPPORTED, label):
        raise ConfigError(
            f"{where}: tells the probability of '{name}', not of something unsupported. Next: fit one for `--task classify`, or confirm "
            f"that '{name}' is unwanted (--label {name})."
        )
