"""The table of what is learned by the invariants over processes and by the recorded curves: one row joins all of them.

Every method of the matrix is a case by itself; beside them stand SEEKR's variants. A case is two tasks, one after
the other with plain gradient descent.
"""

from pathlib import Path
from typing import Any

from matrix import ROWS
from tinylm import PLAIN_SGD

from seekr_cl.methods import get_method

COUNT = 18
"""Examples of a task; not a multiple of the batch: the last one leaves a process with less than the other."""
COUNTS = {"ewc": 19}
"""Three in the last batch, so that two processes share it unevenly, which a penalty on weights must not feel."""
REPLAY = {"samples": 5, "every": 1}
"""Five samples in batches of four: in the last one a process has none."""

GENERAL = Path(__file__).with_name("general.jsonl")
LORA = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"}
SEEKR = {"name": "seekr"} | ROWS["seekr"].invariants
CASES: dict[str, dict[str, Any]] = {name: {"method": {"name": name} | row.invariants} for name, row in ROWS.items()}
CASES |= {
    # Taught until it writes texts that can be read; nothing else is replayed.
    "lfpt5": {
        "method": {"name": "lfpt5", "prefix": "{task}", "separator": ":", "top_k": 3}
        | {"pseudo_ratio": 0.5, "lm_weight": 1.0},
        "replay": {"samples": 0, "every": 1},
        "learning_rate": 0.3,
        "num_train_epochs": 6,
    },
    # Gradients are measured term by term, in micro-batches after which nothing is reduced too.
    "seekr-measured": {
        "method": SEEKR,
        "measure_every": 1,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
    },
    "seekr-joint": {"method": SEEKR, "replay": REPLAY | {"step": "joint"}, "gradient_accumulation_steps": 2},
    "seekr-checkpointed": {
        "method": SEEKR,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    # Matrices are learned beside the model; batches are compared twice where they are measured.
    "seekr-projected": {
        "method": SEEKR | {"target": "hidden", "projection": "identity"},
        "measure_every": 2,
        "num_train_epochs": 2,
    },
    # Steered by measured gradients, as it is by default.
    "seekr-auto": {"method": SEEKR | {"lambda2": "auto"}, "measure_every": 2},
    # The row leaves this out, since with a ratio of 0 it is more than fine-tuning.
    "icarl-new": {"method": {"name": "icarl", "new_examples": True}},
    # Batches of the other cases mix lengths: their records are older than the grouping, and it is no part of a method.
    "replay-grouped": {"method": "replay", "group_by_length": True, "num_train_epochs": 2},
    # Long rows and short ones, whose sequences hold several.
    "seekr-packed": {"method": SEEKR, "packing": True},
    "replay-by-batches": {"method": "replay", "loss_average": "micro_batches", "gradient_accumulation_steps": 2},
    # Reviews come between steps, when the weights of all shards have moved so far.
    "replay-by-updates": {
        "method": "replay",
        "replay": {"samples": 5, "cadence": "forgetting_curve", "clock": "updates", "day_steps": 2},
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
    },
    "seekr-lora": {"method": SEEKR, "peft": LORA},
    # Of two earlier adapters a process may have to ask one that the other does not.
    "seekr-adapter": {"method": SEEKR | {"teacher": "adapter"}, "peft": LORA, "general": str(GENERAL)},
    "derpp-prompt": {"method": "derpp", "peft": {"peft_type": "prompt_tuning", "num_virtual_tokens": 3}},
    "seekr-by-loss": {"method": SEEKR, "replay": REPLAY | {"choice": "loss", "task_weights": "similarity"}},
}


def words_of(name: str) -> dict[str, Any]:
    """What a case's two tasks are made with."""
    wide = {"most": 18} if name == "seekr-packed" else {}
    return {"count": COUNTS.get(name, COUNT)} | (ROWS[name].tasks if name in ROWS else wide)


def tolerance_of(name: str) -> float:
    """The method's own factor on an invariant's tolerance."""
    return ROWS.get(name, ROWS["seekr"]).tolerance


def settings_of(case: dict[str, Any], batch: int) -> dict[str, Any]:
    """All settings of a case, with batches of this many samples in each process."""
    name = case["method"] if isinstance(case["method"], str) else case["method"]["name"]
    kind = get_method(name)
    kept = REPLAY if kind.replays else {"samples": REPLAY["samples"]}
    fixed = PLAIN_SGD | {"group_by_length": False, "per_device_train_batch_size": batch}
    return fixed | ({"replay": kept} if kind.keeps else {}) | case
