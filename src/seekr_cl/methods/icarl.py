"""iCaRL: herded exemplars with their labels, and the earlier model's outputs on old and new examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import nn

from seekr_cl.memory import MemoryTask
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper, label_term
from seekr_cl.methods.common.former_model import label_and_divergence_terms
from seekr_cl.methods.common.gradients import frozen_copy
from seekr_cl.settings import Ge, Hint, Settings


@dataclass(frozen=True, kw_only=True)
class ICaRLSettings(Settings):
    """Settings of iCaRL; which exemplars are kept is ``replay.choice``, by default its herding.

    Attributes:
        distillation: weight of the earlier model's outputs beside the labels; algorithm 3 adds both as they are.
        new_examples: distil them on the new task's examples too, as algorithm 3 does, and not on exemplars alone.
        exemplar_labels: train on the exemplars' own labels too, which algorithm 3 does not.
    """

    distillation: Annotated[float, Ge(0), Hint("0 is replay of herded exemplars")] = 1.0
    new_examples: bool = True
    exemplar_labels: bool = False


class ICaRL(Method):
    """L = L_task + distillation (L_new + L_old), each L a mean over answer tokens (algorithm 3).

    L_task are the new examples' labels, L_new and L_old the earlier model's outputs on new examples and on exemplars.
    What an exemplar is taught is what the earlier model says of it: the official code overwrites all targets of old
    classes with that model's outputs, so the exemplars' labels are no targets (``exemplar_labels`` adds L_replay).
    Exemplars are herded by the model that has learned the task (algorithm 2 trains first, algorithm 4 then chooses).

    The paper's classes with a sigmoid each are here the tokens of one softmax, so that the binary cross entropy with
    the old outputs is the divergence KL(earlier model, model) of next-token distributions. The earlier model is the
    one before the task, held as a frozen copy. Its nearest-mean classifier has no counterpart in generated text.
    """

    name = "icarl"
    paper = Paper(
        "iCaRL: Incremental Classifier and Representation Learning",
        "Rebuffi et al., CVPR 2017",
        "https://arxiv.org/abs/1611.07725",
    )
    Settings = ICaRLSettings
    memory = "replayed"
    frozen_copy = True
    replay_defaults: ClassVar = {"choice": "herding"}

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self._teacher: nn.Module | None = None

    def replay_source(self, tasks: Sequence[MemoryTask]) -> Sequence[MemoryTask]:
        """Holds the model before the task, if there is anything old in it to keep."""
        if self.settings.distillation and any(task.totals.samples for task in tasks):
            self._teacher = frozen_copy(self.context.model)
        return tasks

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """Labels of the new examples, and from the second task on the earlier model's outputs on them."""
        if self._teacher is None or not self.settings.new_examples:
            return super().new_task_loss(model, batch)
        return self._terms(model, batch, self._teacher, "task", "distil_new")

    def replay_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The earlier model's outputs on the exemplars, and their labels where asked for or where there is no model."""
        if self._teacher is None:
            return {"replay": label_term(model, batch)}
        terms = self._terms(model, batch, self._teacher, "replay", "distil_old")
        return terms if self.settings.exemplar_labels else {"distil_old": terms["distil_old"]}

    def _terms(self, model: Any, batch: Batch, teacher: nn.Module, labels: str, outputs: str) -> dict[str, LossTerm]:
        loss = self.context.task_loss if labels == "task" else None
        label, output = label_and_divergence_terms(loss, model, batch, teacher, self.settings.distillation)
        return {labels: label, outputs: output}

    def close(self) -> None:
        """Lets go of the frozen copy."""
        self._teacher = None
