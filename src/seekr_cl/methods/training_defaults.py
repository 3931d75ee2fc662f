"""How a method is trained unless the user says otherwise: its paper's or official code's rate, schedule, optimizer."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingDefaults:
    """Settings of training that a method needs; what is ``None`` is the library's default.

    Epochs are not among them: those of a paper belong to its benchmark, whose protocol sets them.

    Attributes:
        learning_rate: for the first task, and for the others too unless ``later_learning_rate`` says otherwise.
        later_learning_rate: from the method's second task on.
        lr_scheduler_type: shape of the rate within a task.
        optim: the optimizer.
        paper_optim: the optimizer of the paper where it is not the one that is used here.
        reason: where the numbers come from, or why the paper's optimizer is not taken.
    """

    learning_rate: float | None = None
    later_learning_rate: float | None = None
    lr_scheduler_type: str | None = None
    optim: str | None = None
    paper_optim: str | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """What is set."""
        return {key: value for key, value in asdict(self).items() if value is not None and value != ""}

    @property
    def rates(self) -> list[float]:
        """The learning rates of all tasks, each once."""
        return [rate for rate in (self.learning_rate, self.later_learning_rate) if rate is not None]

    def describe(self) -> str:
        """One line for a person, such as ``learning rate 0.001, then 0.0001, constant``."""
        parts = []
        if self.learning_rate is not None:
            later = "" if self.later_learning_rate is None else f", then {self.later_learning_rate:g}"
            parts.append(f"learning rate {self.learning_rate:g}{later}")
        parts += [value for value in (self.lr_scheduler_type, self.optim) if value is not None]
        if self.paper_optim is not None:
            parts.append(f"paper: {self.paper_optim}")
        return ", ".join(parts)


PLAIN_DESCENT = TrainingDefaults(
    paper_optim="sgd",
    reason="the paper steps by plain gradient descent; a rate for it that suits language models is not known, so that "
    "AdamW is the default here as for every method",
)
"""Of methods whose papers train with SGD."""
