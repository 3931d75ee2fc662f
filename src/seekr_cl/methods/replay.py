"""Experience replay: old samples are trained on again with their labels."""

from typing import Any

from seekr_cl.methods.base import Batch, LossTerm, Method, Paper, label_term


class Replay(Method):
    """L = L_task + L_replay (eq. 1 and 2)."""

    name = "replay"
    paper = Paper(
        "On Tiny Episodic Memories in Continual Learning", "Chaudhry et al., 2019", "https://arxiv.org/abs/1902.10486"
    )
    memory = "replayed"

    def replay_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """Cross entropy on the old samples' answers."""
        return {"replay": label_term(model, batch)}
