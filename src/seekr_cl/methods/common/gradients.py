"""What methods that look at weights and gradients share: the trained weights, and gradients of single examples."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from seekr_cl.distributed import collectives
from seekr_cl.distributed.dtensor import is_like, is_sharded, like, local, reshard
from seekr_cl.errors import MemoryFormatError
from seekr_cl.methods.answers import label_sum, predicting
from seekr_cl.methods.base import Batch, Context, ask, label_term, task_generator
from seekr_cl.tasks import Encoded, collate
from seekr_cl.tasks.collate import IGNORE

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of logits [C, V], their places [C] in the flattened batch and labels [B, L]: a sum over the labelled tokens that are
predicted there."""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that training changes, by name.

    Not to be called between a forward pass and its backward pass: a sharded model has whole parameters in their place
    then, and is brought back to its shards here.
    """
    reshard(model)
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def frozen_copy(model: nn.Module) -> nn.Module:
    """The model as it is now, to be asked later; it shares the weights that are not trained, as under adapters."""
    shared = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def placed(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that belong to weights, on their device, and cut as they are if they are sharded (FSDP2).

    Args:
        tensors: by name, whole, as a memory or a checkpoint holds them; or what this has given before.
        weights: by name; every process has to ask.
    """
    return {
        name: tensor if is_like(tensor, weights[name]) else like(tensor, weights[name])
        for name, tensor in tensors.items()
    }


def across(own: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """The sum over all processes' shards, given that over this one's; a gradient goes to its own shard.

    Args:
        own: formed of the ``local`` parts of ``tensors``.
        tensors: where they are whole, ``own`` is the sum already.
    """
    if not any(map(is_sharded, tensors.values())):
        return own
    return own + (collectives.all_reduce_sum(own) - own.detach())


def check_names(model: nn.Module, tensors: Mapping[str, Tensor], method: str) -> None:
    """Makes sure that what was carried on is about the weights that are trained now.

    Raises:
        MemoryFormatError: if it is about others: another model, or full training after adapters.
    """
    now = {name: weight.shape for name, weight in trained(model).items()}
    if now != {name: tensor.shape for name, tensor in tensors.items()}:
        raise MemoryFormatError(
            f"{method}: what the memory carries on is about other weights than those trained now; train the same "
            "weights as before (the same peft setting), or begin a new memory"
        )


def example_batch(context: Context, examples: Sequence[Encoded]) -> Batch:
    """``input_ids``, ``attention_mask`` and ``labels`` [B, L] on the model's device."""
    layout = context.layout
    batch = collate(list(examples), layout.pad_id, layout.side, layout.multiple)
    return {name: tensor.to(context.model.device) for name, tensor in batch.items()}


def drawn(context: Context, count: int) -> list[Encoded]:
    """``count`` of the task's training examples, or all, drawn by the task's seed."""
    order = torch.randperm(len(context.examples), generator=task_generator(context.seed))
    return [context.examples[place] for place in order[:count].tolist()]


def example_gradients(
    context: Context, examples: Sequence[Encoded], make_loss: Callable[[], Loss] = lambda: label_sum
) -> Iterator[dict[str, Tensor]]:
    """The gradient of each example's mean loss alone, by weight; ``parameter.grad`` is left as it is.

    The model is in evaluation mode meanwhile, so that dropout does not disturb it.

    Args:
        context: model and padding.
        examples: one forward and backward pass each.
        make_loss: gives the loss of an example; what draws there must draw the same where it is computed again.
    """
    weights = trained(context.model)
    with _evaluating(context.model):
        for example in examples:
            batch, loss = example_batch(context, [example]), make_loss()
            keep_BL = predicting(batch["labels"])
            sums = partial(_alone, loss, batch["labels"])
            with torch.enable_grad():
                (total,) = ask(context.model, batch, keep_BL, sums)
            yield _gradients(total / keep_BL.sum().clamp(min=1), weights)


def mean_gradient(context: Context, examples: Sequence[Encoded], size: int) -> dict[str, Tensor]:
    """The float32 gradient, by weight, of the mean cross entropy over all answer tokens of some examples.

    ``parameter.grad`` is left as it is, and the model is in evaluation mode meanwhile.

    Args:
        context: model and padding.
        examples: at least one.
        size: how many of them make one forward pass; the result is the same for every size, up to rounding.
    """
    weights = trained(context.model)
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    tokens = sum(one.learnable for one in examples)
    with _evaluating(context.model):
        for first in range(0, len(examples), size):
            batch = example_batch(context, examples[first : first + size])
            share = int((batch["labels"][:, 1:] != IGNORE).sum()) / tokens
            with torch.enable_grad():
                value = label_term(context.model, batch).value * share
            for name, gradient in _gradients(value, weights).items():
                total[name] += gradient
    return total


def step_gradients(model: nn.Module) -> dict[str, Tensor]:
    """The optimizer step's own gradient in float32, by weight, no copy if it is that; zero where there is none."""
    return {
        name: torch.zeros_like(weight, dtype=torch.float32) if weight.grad is None else weight.grad.float()
        for name, weight in trained(model).items()
    }


def put_gradients(model: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Puts others in the place of ``step_gradients``, in the precision of the weights."""
    for name, weight in trained(model).items():
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.copy_(gradients[name])


def inner(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The inner product of two gradients."""
    parts = [torch.dot(local(one[name]).flatten(), local(other[name]).flatten()) for name in one]
    return float(across(torch.stack(parts).sum(), one))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _gradients(value: Tensor, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    found: Sequence[Tensor | None]
    if any(map(is_sharded, weights.values())):
        found = _left_by_backward(value, list(weights.values()))
    else:
        found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(weights.items(), found)
    }


def _left_by_backward(value: Tensor, weights: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """For sharded weights, which autograd does not know: their gradients come about in hooks of the backward pass.

    They are means over the processes, all of which have the same value.
    """
    kept = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    value.backward()
    found = [weight.grad for weight in weights]
    for weight, gradient in zip(weights, kept):
        weight.grad = gradient
    return found


def _alone(loss: Loss, labels_BL: Tensor, logits_CV: Tensor, place_C: Tensor) -> tuple[Tensor]:
    return (loss(logits_CV, place_C, labels_BL),)


def sampled_loss(generator: torch.Generator) -> Loss:
    """The loss with each label replaced by a draw from the model's own distribution, of one example.

    The mean of its squared gradient is the Fisher information; with the data's labels it is the empirical one.
    """
    drawn: dict[int, Tensor] = {}

    def loss(logits_CV: Tensor, place_C: Tensor, labels_BL: Tensor) -> Tensor:
        # A chunk is computed again for its gradient.
        first = int(place_C[0]) if len(place_C) else 0
        if first not in drawn:
            prob_CV = logits_CV.detach().float().softmax(-1).cpu()
            drawn[first] = torch.multinomial(prob_CV, 1, generator=generator)[:, 0].to(labels_BL.device)
        return F.cross_entropy(logits_CV.float(), drawn[first], reduction="sum")

    return loss
