"""A model that computes in another precision for a while."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def computing_in(model: Any, dtype: torch.dtype | None) -> Iterator[None]:
    """Holds the model's weights in another precision for the length of a ``with`` block; the same tensors come back.

    Autocast would do too for training, but casts every weight again for each new token. Buffers stay as they are, as
    when a model is loaded in half precision: frequencies of rotary positions lose too much there. So do weights that
    the model declares to be float32, and those in four or eight bits.

    Args:
        model: of transformers or PEFT.
        dtype: ``None`` is as the weights are, those of adapters as those of a base model in half precision: in float32,
            as PEFT trains them, they would make every layer compute there and back (1.4 times the seconds for the
            same answers on a CPU).
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if dtype is None and base is not model and base.dtype in (torch.bfloat16, torch.float16):
        dtype = base.dtype
    kept_wide = [re.escape(name) for name in getattr(base, "_keep_in_fp32_modules_strict", None) or ()]
    wide = re.compile(rf"(^|\.)({'|'.join(kept_wide)})(\.|$)") if kept_wide else None
    own: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    try:
        for name, weight in model.named_parameters() if dtype is not None else ():
            if weight.is_floating_point() and weight.dtype != dtype and not (wide and wide.search(name)):
                own.append((weight, weight.data))
                weight.data = weight.data.to(dtype)
        yield
    finally:
        for weight, data in own:
            weight.data = data
