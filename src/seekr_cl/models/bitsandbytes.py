"""A base model's weights in four bits, with an adapter trained beside them (QLoRA), by bitsandbytes."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from seekr_cl.errors import ConfigError

FORMS = ("4bit",)


def loading_options(quantization: str | None, dtype: str) -> dict[str, Any]:
    """What ``from_pretrained`` is told: NF4 with quantized constants, as QLoRA.

    Args:
        quantization: one of ``FORMS``, or ``None``.
        dtype: what is computed in; ``auto`` is bfloat16.

    Raises:
        ConfigError: if bitsandbytes is not installed.
    """
    if quantization is None:
        return {}
    require(quantization)
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
    return {"quantization_config": four}


def require(quantization: str | None) -> None:
    """Makes sure that a form of quantization can be used here.

    Raises:
        ConfigError: if bitsandbytes is not installed.
    """
    if quantization is not None and find_spec("bitsandbytes") is None:
        raise ConfigError("quantization: 4bit needs bitsandbytes; install it with: pip install 'seekr-cl[quant]'")


def keep_as_loaded(model: nn.Module, quantization: str | None) -> None:
    """Keeps quantized weights from being laid out anew by the first evaluation on a CPU.

    Their bytes are what the memory knows the model by.
    """
    if quantization is not None:
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - no declared attribute of a Module
