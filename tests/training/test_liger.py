"""Which of Liger's kernels can be asked for, and what is said of the others."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import config_for
from transformers import AutoModelForCausalLM

from seekr_cl.config.liger import check_liger
from seekr_cl.errors import ConfigError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_is_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"use_liger_kernel: .*(pip install 'seekr-cl\[liger\]'|need a GPU)"):
        config_for("seekr", tmp_path, use_liger_kernel=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fused_linear_cross_entropy": True}, "fused_linear_cross_entropy: makes no logits"),
        ({"cross_entropy": True}, "cross_entropy: writes its gradient over the logits"),
        ({"rope": 1}, "rope: 1 is not true or false"),
        ("rope", "is not a mapping"),
    ],
)
def test_what_does_not_compose_is_refused(tmp_path: Path, given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"liger_kernel_config.*{said}"):
        config_for("seekr", tmp_path, use_liger_kernel=True, liger_kernel_config=given)


def test_kernels_without_the_switch_would_be_ignored(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="liger_kernel_config: would be ignored; set use_liger_kernel"):
        config_for("seekr", tmp_path, liger_kernel_config={"rope": False})


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed (it needs triton)")
def test_what_liger_has_nothing_for_is_named(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    check_liger(model, {"rope": True, "swiglu": False, "cross_entropy": False})
    with pytest.raises(ConfigError, match=r"no 'geglu' for a 'llama' model"):
        check_liger(model, {"geglu": True})
    model.config.model_type = "gpt_neox"
    with pytest.raises(ConfigError, match="no kernels for a 'gpt_neox' model"):
        check_liger(model, {})
