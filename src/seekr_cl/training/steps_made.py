"""How many optimizer steps a training made, and how many of them only replay asked for."""

import math
from typing import Any


def steps_made(trainer: Any) -> tuple[int, int]:
    """The steps of a ``SeekrTrainer`` that is done, reviews held between them left out, and replay's steps.

    Replay's are those that the new examples alone would not have had: none where replay joins their steps.
    """
    made, each = trainer.state.global_step, trainer.args.gradient_accumulation_steps
    new = sum(bool(micro.new) for micro in trainer.train_dataset.schedule)
    return made, max(0, made - math.ceil(new / each)) + trainer.review_steps
