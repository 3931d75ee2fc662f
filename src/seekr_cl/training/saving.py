"""When the state of a training is saved."""

from typing import Any

from transformers import TrainerCallback

from seekr_cl.system.fault_points import fault_point
from seekr_cl.system.stop_requests import stop_requested


class SaveWhenDue(TrainerCallback):
    """Asks for a checkpoint every so many steps, at the end of training, and before stopping for a signal.

    Args:
        trainer: whose state it is.
        every: optimizer steps from one to the next; 0 none but the last, None not even that.
    """

    def __init__(self, trainer: Any, every: int | None) -> None:
        self.trainer, self.every = trainer, every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The latest moment at which the Trainer's sums can be set, and the model is wrapped."""
        self.trainer.check_dtypes()
        self.trainer.load_sums()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saving itself comes after this step's line in the log."""
        fault_point("learn.step")
        asked = stop_requested() is not None and state.global_step < state.max_steps
        if asked:
            control.should_training_stop = True
        if self.every is not None:
            due = bool(self.every) and state.global_step % self.every == 0 and state.global_step < state.max_steps
            control.should_save = due or asked

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The schedule is one epoch, so this is the end, and an epoch's own line in the log comes before it too."""
        control.should_save = self.every is not None and state.global_step >= state.max_steps
