"""InsCL: replay that gives more to old tasks unlike the new one, and within a task to prompts that say more."""

from typing import ClassVar

from seekr_cl.methods.base import Paper
from seekr_cl.methods.replay import Replay


class InsCL(Replay):
    """L = L_task + L_replay, with ``replay.task_weights: similarity`` and ``replay.sample_weights: information``.

    Each old task's share of the replayed samples is proportional to the Wasserstein distance of its prompts from the
    new task's, under cosine costs as in the official code, and a sample's part of that to the rarity of what its prompt
    is about (InsInfo). The paper lets GPT-4 name what a prompt is about; here these tags are its words.
    """

    name = "inscl"
    paper = Paper(
        "InsCL: A Data-efficient Continual Learning Paradigm for Fine-tuning Large Language Models with Instructions",
        "Wang et al., NAACL 2024",
        "https://arxiv.org/abs/2403.11435",
    )
    replay_defaults: ClassVar = {"task_weights": "similarity", "sample_weights": "information"}
