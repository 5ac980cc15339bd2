"""Claims found by a probe: what a `localise` probe holds for a claim, token after token, is one.

For answers that are no plain sentences (dialects, lists, other languages), where no language model shall be asked. One pass of the model an
answer; the probe should have been fitted on answers of the same sort.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fairlead.core.claims import ClaimSpan
from fairlead.core.errors import ConfigError
from fairlead.probes.examples import Example
from fairlead.probes.scoring import score_texts

if TYPE_CHECKING:
    from fairlead.models import Model
    from fairlead.probes.span_probe import SpanProbe

CLAIM = "claim"


class ProbeSplitter:
    """Finds the claims of answers with a probe that was fitted to `localise`.

    Args:
        model: The probe's own.
        probe: Tells whether a token is within a claim.
        threshold: From which probability on it is.
        min_chars: Shorter stretches are no claims.

    Raises:
        ConfigError: The probe tells something else.
        ModelError: It is another model's.
    """

    def __init__(self, model: Model, probe: SpanProbe, *, threshold: float = 0.5, min_chars: int = 3) -> None:
        if probe.name != CLAIM:
            raise ConfigError(
                f"the splitter's probe tells '{probe.name}', not where claims stand. Next: fit one for it (--task localise)."
            )
        probe.check(model)
        self.model, self.probe, self.threshold, self.min_chars = model, probe, threshold, min_chars

    def claims(self, messages: Sequence[dict[str, str]], response: str) -> list[ClaimSpan]:
        """The claims of an answer in their order; `value` holds a claim's words."""
        if not response.strip():
            return []
        example = Example(id="answer", messages=tuple(messages), response=response, stretches=())
        (scored,) = score_texts(self.model, self.probe, [example], labelled=False)
        return [
            ClaimSpan(
                start=a, end=b, text=response[a:b], value=" ".join(re.findall(r"\w+", response[a:b].lower()))
            )
            for a, b in self._stretches(scored.tokens, scored.scores)
        ]

    def _stretches(self, tokens: Sequence[str], scores: Sequence[float]) -> Iterator[tuple[int, int]]:
        """Characters of the runs of tokens that are within a claim, without white space around them."""
        at, begin, text = 0, None, "".join(tokens)
        for token, score in zip((*tokens, ""), (*scores, 0.0), strict=True):
            inside = score >= self.threshold
            if inside and begin is None:
                begin = at
            if not inside and begin is not None:
                said = text[begin:at]
                start = begin + len(said) - len(said.lstrip())
                if len(said.strip()) >= self.min_chars:
                    yield start, start + len(said.strip())
                begin = None
            at += len(token)
