"""Precision and batch that fit a model and a machine, with reasons; what a training takes of memory and disk."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from seekr_cl.config.presets import PUBLISHED
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.errors import ModelError, first_line
from seekr_cl.models.context import DEFAULT_LENGTH
from seekr_cl.planning.plan import WIDTHS
from seekr_cl.planning.shape import ModelShape, read_shape
from seekr_cl.system.machine import Machine
from seekr_cl.system.sizes import size

BATCH = 8
"""Examples of an optimizer step."""
ROOM = 0.9
"""Of a device's memory, what a training may be planned to take: the rest is the driver's and the allocator's."""
_OPTIMIZER = 12
"""Bytes a trained weight takes beside itself: gradient and AdamW's two moments, in single precision."""
_LAYER_BYTES = 34
"""Bytes of activations a token and hidden component keep in a layer in half precision, without the attention's scores,
which fused kernels do not keep (Korthikanti et al. 2022, eq. 1)."""
_LOGITS = 3
"""Copies of a batch's logits in single precision: they, their softmax, their gradient."""
_PRECISION = ("bf16", "fp16", "dtype", "quantization", "deepspeed", "fsdp", "fsdp_config", "use_cpu")
_BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps", "deepspeed", "fsdp", "gradient_checkpointing")


def known_shape(model: str) -> ModelShape | None:
    """The shape of a model in a folder or on the Hub; ``None`` if its config is of no kind known here."""
    try:
        return read_shape(place_of(model))
    except ModelError:
        return None


def place_of(model: str) -> Path:
    """The folder of a model, or the file with its config where it is a name on the Hub.

    Raises:
        ModelError: if there is neither.
    """
    if Path(model).exists() or model.count("/") != 1:
        return Path(model)
    try:
        return Path(str(cached_file(model, "config.json")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{model}: its config cannot be had from the Hub ({first_line(error)})") from error


def disk_need(shape: ModelShape, config: SeekrConfig, adapter: int | None, models: int, samples: int) -> int:
    """Bytes that models, checkpoints and the memory take on the disk, about.

    Args:
        shape: the model.
        config: all settings.
        adapter: bytes of the adapter that is trained; ``None`` if all weights are.
        models: how many of them are kept.
        samples: bytes of all samples.
    """
    model = round(shape.parameters * WIDTHS[config.dtype]) if adapter is None else adapter
    trained = shape.parameters if adapter is None else adapter // 4
    # The last two checkpoints: the trained weights with AdamW's moments.
    return models * model + 2 * (model + 8 * trained) + samples


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting that the user left open.

    Attributes:
        key: its name.
        value: what it is set to.
        reason: why, for a person.
    """

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of a device's memory that a training takes, about.

    Attributes:
        weights: the model's, and an adapter's.
        optimizer: gradients and moments.
        activations: of one batch, its logits among them.
    """

    weights: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.optimizer + self.activations


def need(shape: ModelShape, config: SeekrConfig, adapter: int | None, batch: int, tokens: int, mixed: bool) -> Need:
    """What a training takes, beside what ``seekr plan`` says of the method.

    Args:
        shape: the model.
        config: for ``dtype`` and ``quantization``.
        adapter: bytes of the adapter that is trained; ``None`` if all weights are.
        batch: examples of a batch.
        tokens: of an example.
        mixed: whether it is computed in half precision.
    """
    width = WIDTHS[config.dtype] if config.quantization is None else 0.55
    trained = shape.parameters if adapter is None else adapter // 4
    weights = round(shape.parameters * width) + (adapter or 0)
    layer = _LAYER_BYTES * (1 if mixed or WIDTHS[config.dtype] == 2 else 2)
    # Checkpointing keeps each layer's input alone, and all of one layer while it runs again.
    layers = 1 + len(shape.layers) / 16 if config.gradient_checkpointing else len(shape.layers)
    a_token = layers * shape.hidden * layer + _LOGITS * 4 * shape.vocabulary
    return Need(weights, _OPTIMIZER * trained, round(batch * tokens * a_token))


def choose(
    given: Mapping[str, Any], config: SeekrConfig, machine: Machine, shape: ModelShape | None, adapter: int | None
) -> list[Choice]:
    """Settings of precision and batch that the user left open, where others than the defaults fit better.

    Args:
        given: what the user set.
        config: all settings, with defaults in place of what is open.
        machine: where it is trained.
        shape: the model; ``None`` if it is not known before it is loaded.
        adapter: bytes of the adapter that is trained; ``None`` if all weights are.

    Returns:
        one each, none where a preset, a launcher or the user has said how it is done.
    """
    if config.preset in PUBLISHED or machine.kind != "cuda" or "ACCELERATE_MIXED_PRECISION" in os.environ:
        return []
    made = []
    mixed = bool(config.bf16 or config.fp16)
    if machine.bf16 and not any(given.get(key) for key in _PRECISION) and "bf16" not in given:
        mixed = True
        reason = "this GPU computes in bfloat16; the weights stay in float32, so that no small update is lost"
        made.append(Choice("bf16", True, reason))
    if shape is not None and shape.parameters and not any(given.get(key) is not None for key in _BATCHES):
        made += _batch(config, machine, shape, adapter, mixed)
    return made


def _batch(config: SeekrConfig, machine: Machine, shape: ModelShape, adapter: int | None, mixed: bool) -> list[Choice]:
    tokens = min(config.max_length or DEFAULT_LENGTH, shape.context or DEFAULT_LENGTH)

    def fits(batch: int) -> bool:
        return need(shape, config, adapter, batch, tokens, mixed).total <= ROOM * machine.memory

    batch = next((one for one in (BATCH, 4, 2, 1) if fits(one)), 1)
    if batch == BATCH:
        return []
    whole = need(shape, config, adapter, BATCH, tokens, mixed)
    reason = f"{BATCH} examples of {tokens} tokens would take about {size(whole.total)} of {size(machine.memory)}"
    return [
        Choice("per_device_train_batch_size", batch, reason),
        Choice("gradient_accumulation_steps", BATCH // batch, f"an optimizer step still sees {BATCH} examples"),
    ]


def advice(need: Need, machine: Machine, config: SeekrConfig, adapter: int | None) -> str | None:
    """What to change if a training does not fit; ``None`` if it does."""
    if need.total <= ROOM * machine.memory:
        return None
    ways = []
    if config.per_device_train_batch_size > 1 and need.total - need.activations < ROOM * machine.memory:
        ways.append("per_device_train_batch_size=1 with gradient_accumulation_steps")
    if not config.gradient_checkpointing and need.activations > need.total / 4:
        ways.append("gradient_checkpointing=true")
    if adapter is None and config.method.kind.adapters is False:
        ways.append("peft=lora")
    elif config.quantization is None and adapter is not None:
        ways.append("quantization=4bit")
    return f"set {', or '.join(ways)}" if ways else "take a smaller model, a shorter max_length, or more devices"
