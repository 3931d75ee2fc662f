"""Writes docs/architectures.md from the table that the tests run: ``python recipes/architectures_page.py``.

A test fails when the page is not what this prints.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from architectures import MATRIX, REFUSED, STRICT, Architecture, build, make_config  # noqa: E402

from seekr_cl.attention import AttentionTap  # noqa: E402
from seekr_cl.errors import ModelError  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"

HEAD = """# Architectures

Written by `recipes/architectures_page.py` from `tests/helpers/architectures.py`, the table that the tests run over.

SEEKR reads the attention of a model where transformers looks its attention function up (`AttentionInterface`), so a
model works if its attention goes through there and has one causal map a layer and head. For each of the {count} models
below, `tests/attention/test_architectures.py` builds a tiny one with random weights in float64 and compares, without
padding and with padding on the left:

- rows: recomputed from q and k beside the model's own kernel, against the maps of its eager implementation
  (`output_attentions`), to 1e-9;
- gradients: of all parameters, cross entropy and divergence together, against autograd through those maps, to 1e-10 of
  the largest;
- sensitivity: the squared norms of dL/dA in closed form, against autograd on those maps, to 1e-10.

Models marked with 1e-6 compute in float32 inside whatever their dtype; there all three are compared to 1e-6.
The column *tested on* is the implementation that is tapped: sdpa wherever the model runs on it. Rows under flash and
flex attention and packed sequences are tested on a few families in `tests/attention/test_backends.py`; flash attention
itself is not run there, a stand-in with its arguments is.

A model that is missing is not excluded: `AttentionTap(model)` tries it with two tokens and says why if it cannot be
tapped. To add one to the table, write its row.

## Tapped

| model_type | special | tested on | layers tapped | to | remarks |
|---|---|---|---|---|---|
"""

REFUSALS = """
## Refused

`AttentionTap(model)` raises `ModelError` with this sentence.

| model_type | sentence |
|---|---|
"""


def tapped_row(row: Architecture) -> str:
    total = _depth(make_config(row))
    layers = "all" if len(row.layers) >= total else f"{', '.join(map(str, row.layers))} of {total}"
    to = "" if row.tolerance == STRICT else "1e-6"
    return f"| {row.kind} | {row.special} | {row.implementation} | {layers} | {to} | {row.deviation} |\n"


def _depth(config: Any) -> int:
    return int(getattr(config, "num_layers", None) or config.num_hidden_layers)


def refused_row(row: Architecture) -> str:
    try:
        AttentionTap(build(row)).close()
    except ModelError as error:
        return f"| {row.kind} | {error} |\n"
    raise AssertionError(f"{row.kind} is not refused")


def page() -> str:
    """The whole page."""
    tapped = "".join(tapped_row(row) for row in MATRIX)
    return HEAD.format(count=len(MATRIX)) + tapped + REFUSALS + "".join(refused_row(row) for row in REFUSED)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
