"""Sets of defaults: what is right, the same in few bytes, what the paper writes, what the official code does.

``docs/presets.md`` argues each difference. A preset only changes defaults: whatever the user sets wins.
"""

from typing import Any

# With sums over heads and queries (eq. 5) the paper's 1e3 belongs to the code's means over 128 heads x 100 queries.
_PAPER_LAMBDA2 = 1000.0 / (128 * 100)

_OFFICIAL_LOGITS: dict[str, Any] = {
    "logits_top_k": None,
    "logit_alignment": "label",
    "logit_form": "cross_entropy",
}

PUBLISHED = ("paper", "official")
"""Presets of others' settings, which are about the paper's model, whatever is trained by them."""
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # benchmarks/results/bytes_frontier.md
    "small": {
        "derpp": {"logits_top_k": 16},
        "seekr": {"query_budget": 12, "attention_top_k": 16, "logits_top_k": 16},
    },
    "paper": {
        "signal_dtype": "float16",
        "group_by_length": False,
        "replay": {"step": "joint", "over_tasks": "sum"},
        "derpp": {"logits_top_k": None},
        "seekr": {
            "logits_top_k": None,
            "measure": "frobenius",
            "attention_signal": "dense",
            "attention_reduction": "sum",
            "lambda2": _PAPER_LAMBDA2,
            "layer_budget": 24,
            "head_budget": 128,
            "query_budget": 100,
        },
    },
    "official": {
        "prompt_boundary": "merged",
        "padding_side": "left",
        "pad_multiple": 8,
        "order": "official",
        "group_by_length": False,
        "loss_average": "micro_batches",
        "carry_optimizer": True,
        "lr_scheduler_type": "constant",
        "signal_dtype": "float32",
        "replay": {"choice": "first", "cadence": "official"},
        "derpp": _OFFICIAL_LOGITS,
        "seekr": {
            **_OFFICIAL_LOGITS,
            "measure": "padded",
            "importance_rule": "sum_of_products",
            "attention_reduction": "layer_mean",
            "attention_eps": 1e-8,
            "attention_signal": "dense",
            "lambda2": 1000.0,
            "query_replacement": True,
            "query_budget": None,
            "layer_budget": 24,
            "head_budget": 128,
            "gradient_leak": True,
        },
    },
}
