"""How many optimizer steps a training made, and how many of them only replay asked for."""

import math
from typing import Any


def steps_made(trainer: Any) -> tuple[int, int, int]:
    """Of a ``SeekrTrainer`` that is done its own steps, those that the new examples alone would have had, and replay's.

    Replay's count those between the Trainer's own too; there are none where replay joins the steps of new examples.
    """
    made, each = trainer.state.global_step, trainer.args.gradient_accumulation_steps
    new = math.ceil(sum(bool(micro.new) for micro in trainer.train_dataset.schedule) / each)
    return made, new, max(0, made - new) + trainer.review_steps
