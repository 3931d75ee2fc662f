"""Experience replay: old samples are trained on again with their labels."""

from typing import Any

from seekr_cl.methods.base import Batch, LossTerm, Method, Paper, forward
from seekr_cl.methods.losses import causal_lm_loss, count_labels


class Replay(Method):
    """L = L_task + L_replay (eq. 1 and 2)."""

    name = "replay"
    paper = Paper(
        "On Tiny Episodic Memories in Continual Learning", "Chaudhry et al., 2019", "https://arxiv.org/abs/1902.10486"
    )
    memory = "replayed"

    def replay_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """Cross entropy on the old samples' answers."""
        labels_BL = batch["labels"]
        return {"replay": LossTerm(causal_lm_loss(forward(model, batch), labels_BL), count=count_labels(labels_BL))}
