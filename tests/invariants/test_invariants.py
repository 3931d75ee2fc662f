"""What must hold for every change: methods times invariants.

A new method is one row in ``tests/helpers/matrix.py``; it then has to pass every invariant whose terms it has. An
invariant is two sets of settings under which two tasks, one after the other, must give the same model and the same
memory, bit for bit or, where the order of additions differs, within ``atol`` after plain gradient descent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from matrix import ROWS
from tinylm import (
    PLAIN_SGD,
    assert_same,
    char_tokenizer,
    config_for,
    differs,
    logits_in_chunks,
    memory_tensors,
    reverse_task,
    teach,
    two_tasks,
    weights,
)
from torch import Tensor
from transformers import TrainerCallback

from seekr_cl.methods import METHODS, get_method
from seekr_cl.models import source as model_source
from seekr_cl.models.loading import load_model
from seekr_cl.training import learn

REPLAYING = [name for name in ROWS if get_method(name).replays]
DISTILLING = [name for name in REPLAYING if hasattr(get_method(name).Settings(), "logits_top_k")]
WITH_LORA = ["seqft", "seekr"]
SEEING = ["seqft", "seekr", "progressive_prompts"]
"""Whose kernel matters by itself: plain training, attention tapped, masks of its own. All others see logits alone, and
for them it is the first of these again."""
LOOKING = ["ewc", "lwf", "agem", "gem", "ogd", "rwalk"]
VOCABULARY = len(char_tokenizer())
REPLAY = {"samples": 4, "every": 1}


@dataclass(frozen=True)
class Invariant:
    """Two sets of settings that must come to the same; ``method`` settings in them are added to the row's."""

    left: dict[str, Any]
    right: dict[str, Any]
    methods: list[str]
    atol: float = 0.0
    common: dict[str, Any] = field(default_factory=lambda: dict(PLAIN_SGD))
    memory: bool = True
    length: int | None = None
    most: int | None = None


CHECKPOINTED = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
HALF = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
WHOLE = {"per_device_train_batch_size": 8}
LORA = PLAIN_SGD | {"peft": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"}}
PACKED = {"packing": True}
PACKING = ["seqft", "derpp", "derpp_mse", "seekr", "lwf", "agem", "ewc", "l2p", "progressive_prompts"]
"""Plain training, logits, two passes of a step, attention tapped, a second model, gradients of their own, prompts."""
JOINT = {"samples": 8, "every": 1, "step": "joint"}

INVARIANTS = {
    # Nothing kept, nothing replayed: the new task's order and the model's are as if there were no memory.
    "ratio 0 is sequential fine-tuning": Invariant(
        {"replay": {"ratio": 0.0}}, {"method": "seqft", "replay": None}, REPLAYING, common={}, memory=False
    ),
    # Without heads there are no rows, and with lambda2 = 0 not even a term; the logits are taken in another pass.
    "no heads is DER++": Invariant({"method": {"lambda2": 0, "head_budget": 0}}, {"method": "derpp"}, ["seekr"]),
    # (1 - lambda1) L_ld vanishes and lambda1 L_replay is replay's own weight of one.
    "lambda1 1 is replay": Invariant({"method": {"lambda1": 1}}, {"method": "replay"}, ["derpp"], memory=False),
    "lambda1 1 and lambda2 0 is replay": Invariant(
        {"method": {"lambda1": 1, "lambda2": 0}}, {"method": "replay"}, ["seekr"], memory=False
    ),
    "the whole vocabulary is dense": Invariant(
        {"method": {"logits_top_k": VOCABULARY}}, {"method": {"logits_top_k": None}}, DISTILLING, common={}
    ),
    # One token in the tail bucket is that token, so the sparse form must agree with the dense one.
    "all tokens but one is dense": Invariant(
        {"method": {"logits_top_k": VOCABULARY - 1, "logits_tail": "bucket"}},
        {"method": {"logits_top_k": None}},
        DISTILLING,
        atol=2e-6,
        memory=False,
    ),
    "eager is sdpa": Invariant({"attention": "eager"}, {}, SEEING, atol=1e-5),
    "left padding is right padding": Invariant({"padding_side": "left", "pad_multiple": 5}, {}, list(ROWS), atol=1e-5),
    # Words of different lengths: the task's loss is a mean over all answer tokens of the step, whatever their batch.
    "accumulation is a larger batch": Invariant(HALF, WHOLE, ["seqft"], atol=1e-6),
    # Old samples are averaged batch by batch, as eq. 2, 3 and 5 are written. So the same holds for joint steps if
    # replay is split alike and answers are equally long; steps of their own for replay would be grouped otherwise.
    "accumulation is a larger batch of joint steps": Invariant(
        HALF | {"replay": JOINT | {"batch_size": 4}}, WHOLE | {"replay": JOINT}, REPLAYING, atol=2e-6, length=4
    ),
    # What a method does to a step's gradient it does once, whatever the batches it came in; answers equally long, since
    # what a method adds to the loss is averaged batch by batch.
    "accumulation is a larger batch to whoever looks at it": Invariant(HALF, WHOLE, LOOKING, atol=2e-6, length=4),
    # Rows of very different lengths, or no two fit into one sequence. Nothing but the order of additions may differ.
    "packed is padded": Invariant(PACKED, {}, PACKING, atol=2e-6, most=18),
    "packed and padded on the left is padded": Invariant(
        PACKED | {"padding_side": "left"}, {}, ["seekr"], 2e-6, most=18
    ),
    "packed and checkpointed is padded": Invariant(PACKED | CHECKPOINTED, {}, ["seekr"], 2e-6, most=18),
    "packed is padded with lora": Invariant(PACKED, {}, ["seekr"], 2e-6, LORA, most=18),
    "reentrant checkpointing is none": Invariant(CHECKPOINTED, {}, list(ROWS), atol=1e-6),
    "checkpointing is none": Invariant(
        CHECKPOINTED | {"gradient_checkpointing_kwargs": {"use_reentrant": False}}, {}, list(ROWS), atol=1e-6
    ),
    # The logits of two positions at once, made again for their gradient.
    "logits in chunks are logits": Invariant({"chunk": 2}, {}, list(ROWS), atol=1e-6),
    "logits in chunks under reentrant checkpointing": Invariant(CHECKPOINTED | {"chunk": 2}, {}, SEEING[:2], 1e-6),
    "logits in chunks under checkpointing": Invariant(
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}, "chunk": 2},
        {},
        SEEING[:2],
        1e-6,
    ),
    "logits in chunks with lora": Invariant({"chunk": 2}, {}, WITH_LORA, 1e-6, LORA),
    # Under LoRA the first layer's input asks for no gradient, which reentrant checkpointing takes for the last word.
    "reentrant checkpointing is none with lora": Invariant(CHECKPOINTED, {}, WITH_LORA, atol=1e-6, common=LORA),
    "checkpointing is none with lora": Invariant(
        CHECKPOINTED | {"gradient_checkpointing_kwargs": {"use_reentrant": False}}, {}, WITH_LORA, 1e-6, LORA
    ),
    # Everything kept in full precision is what the adapter would say; but for rounding, since a sample is asked in the
    # batch it is replayed in, and was asked alone when its signals were stored.
    "an adapter as teacher is stored logits": Invariant(
        {"method": {"teacher": "adapter"}}, {"method": {"logits_top_k": None}}, ["derpp"], 2e-6, LORA, memory=False
    ),
    "an adapter as teacher is stored signals": Invariant(
        {"method": {"teacher": "adapter", "attention_signal": "dense"}},
        {"method": {"teacher": "stored", "attention_signal": "dense", "logits_top_k": None}},
        ["seekr"],
        atol=2e-6,
        common=LORA,
        memory=False,
    ),
    "an adapter asked under reentrant checkpointing": Invariant(
        CHECKPOINTED | {"method": {"teacher": "adapter"}}, {"method": {"teacher": "adapter"}}, ["seekr"], 2e-6, LORA
    ),
    "eager is sdpa with lora": Invariant({"attention": "eager"}, {}, WITH_LORA, atol=1e-5, common=LORA),
    "accumulation is a larger batch of joint steps with lora": Invariant(
        HALF | {"replay": JOINT | {"batch_size": 4}}, WHOLE | {"replay": JOINT}, WITH_LORA, 2e-6, LORA, length=4
    ),
}
# Another family's attention is another matter only to a method that looks at attention. Method by method, since most of
# a method's invariants have a side in common.
CASES = [
    (name, method, family)
    for method in ROWS
    for family in ("llama", "qwen3")
    for name, invariant in INVARIANTS.items()
    if method in invariant.methods and name not in ROWS[method].skip_invariants
    if family == "llama" or (method == "seekr" and invariant.atol)
]


def test_every_method_has_a_row() -> None:
    assert set(ROWS) == {name for name, method in METHODS.items() if not method.multi_task}


def test_the_kernel_is_sdpa_and_the_padding_right_unless_said_otherwise(bases: dict[str, Path], tmp_path: Path) -> None:
    """What the invariants take for granted on the side that says nothing."""
    model, _ = load_model(bases["llama"], "float32", False, None)
    assert model.config._attn_implementation == "sdpa"
    config = config_for("seqft", tmp_path)
    assert (config.padding_side or "right", config.pad_multiple or 1) == ("right", 1)


def attend_with(patch: pytest.MonkeyPatch, kernel: str) -> None:
    """Models are loaded with that attention kernel."""
    load = model_source.load_model

    def loaded(*args: Any) -> Any:
        model, tokenizer = load(*args)
        model.set_attn_implementation(kernel)
        assert model.config._attn_implementation == kernel
        return model, tokenizer

    patch.setattr(model_source, "load_model", loaded)


Outcome = tuple[dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture(scope="module")
def outcome(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Gives the second model and the memory after two tasks; what many invariants share is learned once."""
    done: dict[str, Outcome] = {}

    def learnt(family: str, method: str, invariant: Invariant, settings: dict[str, Any]) -> Outcome:
        settings = {"replay": REPLAY} | invariant.common | settings
        change, kernel, chunk = (settings.pop(key, None) for key in ("method", "attention", "chunk"))
        change = change or {}
        wanted = {"name": change} if isinstance(change, str) else {"name": method} | ROWS[method].invariants | change
        if not get_method(wanted["name"]).keeps:
            settings.pop("replay")
        elif not get_method(wanted["name"]).replays:
            settings["replay"] = {"samples": settings["replay"]["samples"]}
        parts = (kernel, chunk, invariant.length, invariant.most, ROWS[method].tasks)
        key = repr((family, wanted, sorted(settings.items()), *parts))
        if key not in done:
            folder = tmp_path_factory.mktemp("outcome")
            tasks = two_tasks(16, invariant.length, most=invariant.most, **ROWS[method].tasks)
            with pytest.MonkeyPatch.context() as patch, logits_in_chunks(chunk):
                if kernel:
                    attend_with(patch, kernel)
                teach(bases[family], folder, tasks, config_for(wanted, folder, **settings))
            done[key] = weights(folder / "m2"), memory_tensors(folder / "memory")
        return done[key]

    return learnt


@pytest.mark.parametrize(("name", "method", "family"), CASES, ids=["-".join(case).replace(" ", "_") for case in CASES])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_both_sides_agree(
    bases: dict[str, Path], outcome: Callable[..., Outcome], name: str, method: str, family: str
) -> None:
    invariant = INVARIANTS[name]
    left, left_memory = outcome(family, method, invariant, invariant.left)
    right, right_memory = outcome(family, method, invariant, invariant.right)
    assert left is not right, "the two sides are the same settings"
    assert differs(left, weights(bases[family])), "nothing was learnt"
    atol = invariant.atol * ROWS[method].tolerance
    assert_same(left, right, atol)
    if invariant.memory:
        # SEEKR without heads still notes importance and queries; what the other side keeps has to be the same.
        assert_same({key: left_memory[key] for key in right_memory}, right_memory, 20 * atol)


@pytest.mark.parametrize("method", [name for name in ROWS if name not in ("seqft", "replay")])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_method_does_something_of_its_own_in_its_invariants(outcome: Callable[..., Outcome], method: str) -> None:
    """Or they would be those of plain fine-tuning or replay; ``tasks`` in its row can give it something to do."""
    invariant = INVARIANTS["checkpointing is none"]
    own, _ = outcome("llama", method, invariant, {})
    for other in ("seqft", "replay"):
        assert differs(own, outcome("llama", method, invariant, {"method": other})[0]), f"it is {other}"


def test_packed_rows_share_sequences(bases: dict[str, Path], tmp_path: Path) -> None:
    """Or the invariants of packing would compare a thing with itself."""
    sequences: list[int] = []

    class Look(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            layer = kwargs["model"].model.layers[0]
            layer.register_forward_pre_hook(lambda _, given: sequences.append(len(given[0])))

    (task, _) = two_tasks(16, most=18)
    config = config_for("seekr", tmp_path, per_device_train_batch_size=8, group_by_length=False, **PACKED)
    learn(bases["llama"], task, tmp_path / "memory", tmp_path / "m1", config, [Look()])
    # Two steps of eight rows each.
    assert max(sequences[:2]) < 8


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_the_checkpointing_settings_reach_the_model(bases: dict[str, Path], tmp_path: Path, reentrant: bool) -> None:
    seen: list[Any] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            layer = kwargs["model"].model.layers[0]
            seen.append((layer.gradient_checkpointing, layer._gradient_checkpointing_func.keywords["use_reentrant"]))

    kwargs = {"use_reentrant": reentrant}
    config = config_for("seekr", tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs)
    learn(bases["llama"], reverse_task(), tmp_path / "memory", tmp_path / "m1", config, [Look()])
    assert seen == [(True, reentrant)] * 3
