"""What a training tells of itself to the tracker, and under which name to TensorBoard, trackio and others."""

import os
from typing import Any

from transformers import TrainingArguments

from seekr_cl.config.rates import told
from seekr_cl.distributed import collectives
from seekr_cl.memory import TaskSamples
from seekr_cl.replay.schedule import MicroBatch
from seekr_cl.tasks.task import safe_name
from seekr_cl.training.learning import Learning
from seekr_cl.training.progress import console
from seekr_cl.training.tracker import TrackedTraining


def say_settings(state: Learning, args: Any, rate_source: str) -> None:
    """One line on what matters most and is often left open, with reasons; once, while it stays the same.

    Args:
        state: of the learning.
        args: those of its Trainer.
        rate_source: where the learning rate comes from, as ``rates.task_rate`` says.
    """
    if state.config.progress == "none" or not collectives.is_main():
        return
    rate = told(args.learning_rate, rate_source)
    said = f"{rate}, {_precision(args, state.context.model)}, {_batch(args)}"
    if said != state.tracker.settings:
        state.tracker.settings = said
        console().print(said, soft_wrap=True, markup=False)


def _precision(args: Any, model: Any) -> str:
    weights = next((one.dtype for one in model.parameters() if one.requires_grad), model.dtype)
    name = str(weights).removeprefix("torch.")
    if args.bf16 or args.fp16:
        return f"computing in {'bfloat16 (bf16' if args.bf16 else 'float16 (fp16'}; trained weights in {name})"
    why = " (the default on a CPU)" if name == "float32" and args.device.type == "cpu" else ""
    return f"computing in {name}{why}"


def _batch(args: Any) -> str:
    each, times, world = args.per_device_train_batch_size, args.gradient_accumulation_steps, collectives.world_size()
    parts = [f"{each} at a time"] * (each * times * world != each)
    parts += [f"{times} accumulated"] * (times > 1) + [f"{world} processes"] * (world > 1)
    if not parts and each == TrainingArguments.__dataclass_fields__["per_device_train_batch_size"].default:
        parts = ["the default"]
    return f"{each * times * world} examples a step" + (f" ({', '.join(parts)})" if parts else "")


def name_for_reports(args: Any, state: Learning) -> None:
    """Gives each task of a stream a name, and TensorBoard a folder, of its own: steps begin at 0 in each of them."""
    place = state.tracker.logs
    if place is None:
        return
    task = f"{state.tracker.number:02d}-{safe_name(state.name)}"
    if args.run_name is None:
        args.run_name = f"{place.parent.name if place.name == 'logs' else place.stem}-{task}"
    if "tensorboard" in (args.report_to or []) and not os.environ.get("TENSORBOARD_LOGGING_DIR"):
        args.output_dir = str(place / task)


def tracked(state: Learning, schedule: list[MicroBatch], replay: TaskSamples) -> TrackedTraining:
    """What follows the training: how many tokens each micro-batch has, and which of them hold replay."""
    new = [len(item.input_ids) for item in state.context.examples]
    old = replay.lengths()
    tokens = [sum(new[i] for i in micro.new) + sum(old[i] for i in micro.replay) for micro in schedule]
    return TrackedTraining(state.tracker, state.name, tokens, [bool(micro.replay) for micro in schedule])
