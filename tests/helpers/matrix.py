"""The shared test matrix: one row a method. What a row promises is checked in ``test_matrix.py`` and the invariants.

``seekr``, ``derpp`` and ``replay`` have their settings tested one by one in ``tests/training/``; a row here needs no
``changes`` for them.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Change:
    """A setting's other value, where it must show (``weights``, ``memory`` or ``log``) and on top of which settings."""

    to: Any
    shows: str = "weights"
    on: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What the matrix needs to know of a method.

    Attributes:
        settings: with which its effect shows on a model of a few thousand weights.
        changes: for every setting, a value that changes something.
        wrong: values that are refused, by setting.
        training: settings of the Trainer for all of its tests.
        learns: how far the loss of a trivial task must fall, as a share of what it was.
        begins: what it is at first, at least; of what is no cross entropy it may be anything.
        first_task: whether it differs from plain fine-tuning on the first task already.
        tasks: what the invariants' two tasks must be like (``tinylm.two_tasks``) for it to do anything of its own.
        invariants: settings for the invariants, where sums in another order may change rounding but no decision.
        skip_invariants: names of invariants that do not hold, with the reason in a comment beside it.
        tolerance: factor on an invariant's tolerance.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    wrong: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    learns: float = 0.3
    begins: float = 1.0
    first_task: bool = False
    tasks: dict[str, Any] = field(default_factory=dict)
    invariants: dict[str, Any] = field(default_factory=dict)
    skip_invariants: tuple[str, ...] = ()
    tolerance: float = 1.0


ROWS: dict[str, Row] = {
    "seqft": Row(),
    "replay": Row(),
    "derpp": Row(),
    "derpp_mse": Row(
        settings={"distance": "sum"},
        changes={"alpha": Change(0.1), "beta": Change(0.0), "distance": Change("mean")},
        wrong={"alpha": -1, "beta": -1, "distance": "x"},
        invariants={"distance": "sum", "alpha": 0.05},
    ),
    # lambda2 stands still in the invariants: "auto" measures single micro-batches, so another batching changes it.
    "seekr": Row(invariants={"lambda2": 20.0, "layer_budget": None, "head_budget": 5, "query_budget": 4}),
    "ewc": Row(
        settings={"strength": 300.0},
        changes={
            "strength": Change(3000.0),
            "form": Change("online", "memory"),
            "decay": Change(0.5, "memory", {"form": "online"}),
            "fisher_samples": Change(2, "memory"),
            "fisher_labels": Change("data", "memory"),
        },
        wrong={"strength": -1, "form": "half", "decay": 0.5, "fisher_samples": 0, "fisher_labels": "x"},
        # Labels drawn from distributions that differ by rounding may differ.
        invariants={"fisher_labels": "data", "strength": 30.0},
    ),
    "icarl": Row(
        changes={
            "distillation": Change(5.0),
            "new_examples": Change(False),
            "exemplar_labels": Change(True),
        },
        wrong={"distillation": -1},
        # Without exemplars there is still the earlier model's output on new examples, but for this.
        invariants={"new_examples": False},
    ),
    # Only prompts of more than a word say more or less than others.
    "inscl": Row(tasks={"spaced": True}),
    "lfpt5": Row(
        settings={"pseudo_ratio": 0.5, "top_k": 3},
        # Long enough for texts that can be read.
        training={"replay": {"every": 1}, "num_train_epochs": 12, "learning_rate": 0.03},
        changes={
            "lm_weight": Change(1.0),
            "pseudo_ratio": Change(1.0),
            "consistency": Change(0.5),
            "top_k": Change(1),
            "prefix": Change("{task}:"),
            "separator": Change("=="),
        },
        wrong={
            "lm_weight": 0,
            "pseudo_ratio": -1,
            "consistency": -1,
            "top_k": -1,
            "prefix": "task",
            "separator": "",
        },
        first_task=True,
        # It learns to write from the new task alone, and its texts are averaged batch by batch.
        skip_invariants=("ratio 0 is sequential fine-tuning", "accumulation is a larger batch of joint steps"),
    ),
    "onpolicy_replay": Row(
        training={"replay": {"ratio": 0.5, "every": 1}, "num_train_epochs": 6},
        changes={
            "scorer": Change("confidence"),
            "keep": Change(1.0),
            "temperature": Change(5.0),
            "loss": Change("kl"),
        },
        wrong={"scorer": "judge", "keep": 0, "temperature": -1, "loss": "x"},
    ),
    "sdft": Row(
        changes={
            "teacher": Change("ema"),
            "ema_rate": Change(0.9, on={"teacher": "ema"}),
            "top_k": Change(3),
            "temperature": Change(0.2),
            "skip": Change(1),
            "max_new_tokens": Change(2),
            "demonstration": Change("{answer}{prompt}"),
        },
        wrong={
            "teacher": "x",
            "ema_rate": 0,
            "top_k": -1,
            "temperature": -1,
            "skip": -1,
            "max_new_tokens": 0,
            "demonstration": "{prompt}",
        },
        # A model of a few thousand weights says the same with and without a demonstration: there is nothing to learn.
        learns=2.0,
        begins=0.01,
        first_task=True,
        # Draws from distributions that differ by rounding may differ.
        invariants={"temperature": 0.0},
    ),
    "olora": Row(
        settings={"dropout": 0.05},
        changes={
            "rank": Change(4, "memory"),
            "alpha": Change(8.0),
            "dropout": Change(0.5),
            "targets": Change("all-linear", "memory"),
            "lambda1": Change(5.0),
            "lambda2": Change(0.1),
            "orthogonality": Change("absolute"),
        },
        wrong={
            "rank": 0,
            "alpha": 0,
            "dropout": 1,
            "targets": 3,
            "lambda1": -1,
            "lambda2": -1,
            "orthogonality": "x",
        },
        training={"learning_rate": 0.03},
        learns=0.6,
        first_task=True,
        invariants={"dropout": 0.0},
    ),
    "osft": Row(
        changes={"preserved": Change(0.25), "targets": Change("q_proj, v_proj"), "others": Change("frozen")},
        wrong={"preserved": 0, "targets": 3, "others": "x"},
        first_task=True,
    ),
    "progressive_prompts": Row(
        settings={"prompt_length": 4, "bottleneck": 16},
        changes={"prompt_length": Change(2), "bottleneck": Change(0)},
        wrong={"prompt_length": 0, "bottleneck": -1},
        training={"learning_rate": 0.05, "num_train_epochs": 12},
        learns=0.8,
        first_task=True,
        # A prompt alone may begin as the padding token, whose embedding is zero: its norm's gradient is huge there.
        invariants={"bottleneck": 800},
    ),
    "l2p": Row(
        settings={"pool_size": 6, "prompt_length": 2, "top": 2},
        changes={
            "pool_size": Change(4),
            "prompt_length": Change(3),
            "top": Change(3),
            "pull": Change(5.0),
            "query": Change("hidden"),
        },
        wrong={"pool_size": 0, "prompt_length": 0, "top": 11, "pull": -1, "query": "x"},
        training={"learning_rate": 0.1, "num_train_epochs": 3},
        learns=0.9,
        first_task=True,
        # It does not look at attention.
        skip_invariants=("sdpa is eager",),
    ),
    "sapt": Row(
        settings={"query_size": 8, "dropout": 0.05},
        changes={
            "rank": Change(2),
            "alpha": Change(8.0),
            "dropout": Change(0.5),
            "targets": Change("q_proj, k_proj"),
            "query_size": Change(4),
            "temperature": Change(0.2),
            "reflection": Change(30.0),
        },
        wrong={
            "rank": 0,
            "alpha": 0,
            "dropout": 1,
            "targets": 3,
            "query_size": 0,
            "temperature": 0,
            "reflection": -1,
        },
        training={"learning_rate": 0.03},
        learns=0.6,
        first_task=True,
        invariants={"dropout": 0.0},
        # Without samples of old tasks it still has an adapter for each; it does not look at attention.
        skip_invariants=("ratio 0 is sequential fine-tuning", "sdpa is eager"),
    ),
    "tree_lora": Row(
        settings={"dropout": 0.05},
        changes={
            "rank": Change(4),
            "alpha": Change(8.0),
            "dropout": Change(0.5),
            "targets": Change("all-linear"),
            "strength": Change(2.0),
        },
        wrong={
            "rank": 0,
            "alpha": 0,
            "dropout": 1,
            "targets": 3,
            "strength": -1,
        },
        training={"learning_rate": 0.03},
        learns=0.6,
        first_task=True,
        invariants={"dropout": 0.0},
        # It does not look at attention.
        skip_invariants=("sdpa is eager",),
    ),
    "slao": Row(
        settings={"dropout": 0.05},
        changes={
            "rank": Change(4),
            "alpha": Change(8.0),
            "dropout": Change(0.5),
            "targets": Change("all-linear"),
        },
        wrong={"rank": 0, "alpha": 0, "dropout": 1, "targets": 3},
        training={"learning_rate": 0.03},
        learns=0.6,
        first_task=True,
        invariants={"dropout": 0.0},
    ),
    "inflora": Row(
        changes={
            "rank": Change(1),
            "alpha": Change(8.0),
            "dropout": Change(0.5),
            "targets": Change("all-linear", "memory"),
            "threshold": Change(0.6, "memory"),
            "input_samples": Change(1, "memory"),
        },
        wrong={"rank": 0, "alpha": 0, "dropout": 1, "targets": 3, "threshold": 0, "input_samples": 0},
        training={"learning_rate": 0.03},
        learns=0.6,
        first_task=True,
        # Directions in which the inputs hardly reach turn with their rounding.
        invariants={"threshold": 0.9, "rank": 2},
    ),
    "lwf": Row(
        settings={"strength": 0.3},
        changes={"strength": Change(3.0), "temperature": Change(1.0)},
        wrong={"strength": -1, "temperature": 0},
        first_task=True,
    ),
    "agem": Row(
        # Of three kept samples, so that it matters which are drawn.
        settings={"reference_samples": 2},
        changes={"reference_samples": Change(1)},
        wrong={"reference_samples": 0},
        tasks={"answers": ("yes", "no")},
        invariants={"reference_samples": 3},
    ),
    "gem": Row(
        changes={
            "margin": Change(0.0),
            "margin_form": Change("bound"),
            "reference_samples": Change(1),
        },
        wrong={"margin": -1, "margin_form": "x", "reference_samples": 0},
        tasks={"answers": ("yes", "no")},
    ),
    "ogd": Row(
        settings={"directions": 6},
        changes={"directions": Change(2, "memory"), "logits": Change("average", "memory")},
        wrong={"directions": 0, "logits": "x"},
        invariants={"directions": 6},
    ),
    "rwalk": Row(
        settings={"interval": 3},
        changes={
            "strength": Change(100.0),
            "alpha": Change(0.2, "memory"),
            "interval": Change(1, "memory"),
            "epsilon": Change(1.0, "memory"),
        },
        wrong={"strength": -1, "alpha": 2, "interval": 0, "epsilon": 0},
        invariants={"interval": 3},
    ),
}
