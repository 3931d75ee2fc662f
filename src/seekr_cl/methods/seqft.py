"""Sequential fine-tuning: each task is trained on as if there were no other. The lower bound."""

from seekr_cl.methods.base import Method, Paper


class SeqFT(Method):
    """L = L_task (eq. 1)."""

    name = "seqft"
    paper = Paper(
        "Catastrophic interference in connectionist networks: the sequential learning problem",
        "McCloskey and Cohen, 1989",
        "https://doi.org/10.1016/S0079-7421(08)60536-8",
    )
