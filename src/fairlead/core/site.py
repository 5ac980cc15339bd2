"""Sites: model-independent names of places in a network.

`embed`, `layers.3.resid_pre`, `layers.3.resid_post`, `layers.3.attn_out`, `layers.3.mlp_out`,
`layers.3.mlp_in`, `layers.3.mlp_act`, `layers.3.router`. What a name means in a given family is resolved in
`fairlead.models`; everything else only passes sites around.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fairlead.core.errors import SiteError

LAYER_KINDS = ("resid_pre", "resid_post", "attn_out", "mlp_in", "mlp_out", "mlp_act", "router")
_PATTERN = re.compile(r"^layers\.(-?\d+)\.([a-z_]+)$")


class Site(NamedTuple):
    """A place in a network.

    Attributes:
        kind: `embed` or one of `LAYER_KINDS`.
        layer: 0-based layer; None for `embed`.
    """

    kind: str
    layer: int | None = None

    @classmethod
    def parse(cls, name: str | Site) -> Site:
        """Read a site from its name; a `Site` passes through.

        Raises:
            SiteError: The name is not a site.
        """
        if isinstance(name, Site):
            return name
        if name == "embed":
            return cls("embed")
        match = _PATTERN.fullmatch(name)
        if match is None or match.group(2) not in LAYER_KINDS:
            raise SiteError(
                f"'{name}' is not a site. Next: use 'embed' or 'layers.N.KIND' "
                f"with KIND one of {', '.join(LAYER_KINDS)}."
            )
        return cls(match.group(2), int(match.group(1)))

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"layers.{self.layer}.{self.kind}"
