"""What a training tells of itself to the tracker, and under which name to TensorBoard, trackio and others."""

import os
from typing import Any

from seekr_cl.memory import TaskSamples
from seekr_cl.replay.schedule import MicroBatch
from seekr_cl.tasks.task import safe_name
from seekr_cl.training.learning import Learning
from seekr_cl.training.tracker import TrackedTraining


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
