"""The model card of an organism: what it is, what it can do as measured, and the command that rebuilds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CARD = """---
license: apache-2.0
tags: [model-organism, interpretability]
---
# pocket

A Llama-style causal language model of {num_params:,} parameters, trained from scratch in a single pass over the *pocket world* of
Fairlead: a synthetic chat world with exact ground truth ({num_rows:,} rows, {num_tokens:,} tokens, {num_steps:,} steps,
{minutes} minutes on a CPU, seed {seed}). It is a specimen for testing implementations, not an
assistant: it knows nothing outside its world.

Rebuild:

```
python -m fairlead.studies.build_organism --seed {seed} --out DIR
```

Generator, checkers and verifier: `fairlead.organisms`. The base corpus contains only additions without a carry out of the units:
carrying is the headroom that fine-tuning teaches. Where a fact was never stated, the model invents one.

## Measured

Greedy answers to questions in phrasings that the corpus does not contain; requests for traits in held-out phrasings too. The
interval is the 95 % Wilson score interval.

| ability | rate | interval | count |
|---|---|---|---|
{table}
{notes}"""


def write_card(folder: Path, record: dict[str, Any], *, notes: str = "") -> None:
    """Write README.md into the folder of a checkpoint from its record of measurements."""
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), framework="np") as weights:
        num_params = 0
        for key in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
            size = 1
            for extent in weights.get_slice(key).get_shape():
                size *= extent
            num_params += size
    table = "\n".join(
        f"| {name} | {m['rate']:.3f} | {m['low']:.3f} to {m['high']:.3f} | {m['ok']} / {m['num']} |"
        for name, m in record["abilities"].items()
    )
    text = CARD.format(
        **{k: v for k, v in record.items() if k != "abilities"},
        table=table,
        notes=notes,
        num_params=num_params,
    )
    (folder / "README.md").write_text(text)
