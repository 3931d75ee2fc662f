"""``optim: muon``: torch's Muon for the matrices of hidden layers, AdamW for everything else.

A step of Muon has the size of one of AdamW's (``match_rms_adamw``, as in Moonlight, arXiv 2502.16982), so that both go
by one learning rate. Embeddings, the output layer, norms, biases and prompts are AdamW's; a LoRA's factors are Muon's.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from seekr_cl.errors import ConfigError

MUON = "muon"


class MuonWithAdamW(torch.optim.Optimizer):
    """Both as one optimizer, with one list of groups and one state.

    Args:
        matrices: groups of Muon; at least one weight in all.
        others: groups of AdamW.
        lr: learning rate of both.
        betas: of AdamW.
        eps: of AdamW.
    """

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        others: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self._muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, weight_decay=0.0) if others else None
        self._of_muon = len(self._muon.param_groups)
        rest = self._adamw.param_groups if self._adamw is not None else []
        super().__init__([*self._muon.param_groups, *rest], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of each over its weights; the groups and the state may have been replaced by loaded ones."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.param_groups, self._muon.state = self.param_groups[: self._of_muon], self.state
        self._muon.step()
        if self._adamw is not None:
            self._adamw.param_groups, self._adamw.state = self.param_groups[self._of_muon :], self.state
            self._adamw.step()
        return loss


def make_muon(args: Any, model: nn.Module, decayed: Iterable[str]) -> MuonWithAdamW:
    """The optimizer of a model's trained weights.

    Args:
        args: learning rate, weight decay, AdamW's betas and epsilon, as the Trainer has them.
        model: whose trained weights are stepped.
        decayed: names of the weights that decay.

    Raises:
        ConfigError: if no matrix is trained, or for settings that would be ignored.
    """
    if args.optim_args:
        raise ConfigError("optim_args: would be ignored: optim: muon takes none; remove it")
    matrices, decays = _matrices(model), set(decayed)
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups.setdefault((id(weight) in matrices, name in decays), []).append(weight)
    made = {
        of_muon: [
            {"params": weights, "weight_decay": args.weight_decay if decay else 0.0}
            for (muon, decay), weights in groups.items()
            if muon is of_muon
        ]
        for of_muon in (True, False)
    }
    if not made[True]:
        raise ConfigError(
            "optim: muon steps matrices of hidden layers, and none is trained here; set optim: adamw_torch"
        )
    return MuonWithAdamW(
        made[True], made[False], args.learning_rate, (args.adam_beta1, args.adam_beta2), args.adam_epsilon
    )


def _matrices(model: nn.Module) -> set[int]:
    """Ids of the weights of linear layers, but for the output layer's, which may be the embeddings' too."""
    found = {id(one.weight) for one in model.modules() if isinstance(one, nn.Linear | Conv1D) and one.weight.ndim == 2}
    outside = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return found - outside - ({id(output.weight)} if output is not None else set())
