"""What of a Trainer must be saved so that the next step is the one that would have come, to the last bit.

Tensors and JSON only. ``take_*`` copies nothing that stays on the device longer than the write; ``put_*`` is its
inverse on a Trainer that was set up in the same way.
"""

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from seekr_cl.distributed import collectives
from seekr_cl.distributed.dtensor import is_sharded, joined, like, local, put
from seekr_cl.errors import ConfigError

Tensors = dict[str, Tensor]


def take_weights(model: nn.Module) -> Tensors:
    """What training changes: trainable weights and the buffers of the model's state, sharded as they are."""
    named = dict(model.named_parameters())
    everything = dict(model.named_parameters(remove_duplicate=False))
    weights: Tensors = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    # What a quantized layer adds to its state is neither a weight nor a buffer, and does not change.
    own = dict(model.named_buffers())
    buffers = {name: own[name] for name in model.state_dict() if name in own and name not in everything}
    return weights | buffers


def put_weights(model: nn.Module, tensors: Tensors, pieces: Tensors | None = None) -> None:
    """Copies saved weights into the model.

    Args:
        model: as it was when they were saved, or, for whole tensors, sharded in any way.
        tensors: whole ones.
        pieces: this process's of sharded ones.

    Raises:
        ConfigError: if they are not those of this model.
    """
    places: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    pieces = pieces or {}
    if take_weights(model).keys() != tensors.keys() | pieces.keys():
        raise ConfigError("checkpoint: its weights are not those of this model; resume with the model it began with")
    for name, tensor in tensors.items():
        put(tensor, places[name])
    with torch.no_grad():
        for name, piece in pieces.items():
            local(places[name]).copy_(piece)


def take_rng() -> tuple[Tensors, dict[str, Any]]:
    """The state of every generator that a draw without a generator of its own comes from."""
    kind, keys, *rest = numpy.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(numpy.asarray(keys, "int64"))}
    if torch.cuda.is_available():
        tensors |= {f"cuda/{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"python": random.getstate(), "numpy": [kind, *rest]}


def put_rng(tensors: Tensors, content: dict[str, Any]) -> None:
    """Sets every generator to a saved state."""
    version, keys, gauss = content["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, *rest = content["numpy"]
    numpy.random.set_state((kind, tensors["numpy"].numpy().astype("uint32"), *rest))
    torch.set_rng_state(tensors["torch"])
    cuda = [tensors[f"cuda/{number}"] for number in range(len(tensors)) if f"cuda/{number}" in tensors]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)


def rng_of_all() -> tuple[Tensors, list[dict[str, Any]]]:
    """``take_rng`` of every process."""
    tensors, content = take_rng()
    named = {
        f"{number}/{name}": tensor
        for number, states in enumerate(collectives.all_gather_tensors(tensors))
        for name, tensor in states.items()
    }
    return named, collectives.all_gather_object(content)


def put_rng_of_all(tensors: Tensors, content: list[dict[str, Any]]) -> None:
    """Sets this process's generators to what they were in the process of its number."""
    prefix = f"{collectives.rank()}/"
    mine = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    put_rng(mine, content[collectives.rank()])


def take_optimizer(optimizer: Any, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
    """``take_state`` by the model's names."""
    return take_state(getattr(optimizer, "optimizer", optimizer), dict(model.named_parameters()))


def take_state(inner: Any, parameters: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, Any]]:
    """Optimizer state by parameter name, sharded as it is, and its groups' settings.

    Args:
        inner: torch's optimizer.
        parameters: what it steps, by name.

    Raises:
        ConfigError: if the optimizer keeps something that is neither a tensor nor JSON.
    """
    names = {parameter: name for name, parameter in parameters.items()}
    tensors: Tensors = {}
    others: dict[str, dict[str, Any]] = {}
    for parameter, state in inner.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{names[parameter]}/{key}"] = value
            else:
                others.setdefault(names[parameter], {})[key] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in inner.param_groups]
    # A counter may live on the CPU although its parameter does not.
    on_cpu = [name for name, tensor in tensors.items() if tensor.device.type == "cpu" and not is_sharded(tensor)]
    content = {"state": others, "groups": groups, "cpu": on_cpu}
    try:
        json.dumps(content)
    except TypeError as error:
        raise ConfigError(
            f"optim: {type(inner).__name__} keeps state that cannot be saved ({error}); set checkpoint_every: 0"
        ) from error
    return tensors, content


def put_optimizer(
    optimizer: Any, model: nn.Module, tensors: Tensors, content: dict[str, Any], pieces: Tensors | None = None
) -> None:
    """Gives saved state to an optimizer of the same kind over the same parameters; ``pieces`` as for weights."""
    put_state(getattr(optimizer, "optimizer", optimizer), dict(model.named_parameters()), tensors, content, pieces)


def put_state(
    inner: Any,
    parameters: Mapping[str, Tensor],
    tensors: Tensors,
    content: dict[str, Any],
    pieces: Tensors | None = None,
) -> None:
    """Gives back what ``take_state`` took."""
    inner.state.clear()
    on_cpu = set(content["cpu"])
    for full, tensor in tensors.items():
        name, _, key = full.rpartition("/")
        inner.state[parameters[name]][key] = tensor if full in on_cpu else like(tensor, parameters[name])
    for full, piece in (pieces or {}).items():
        name, _, key = full.rpartition("/")
        inner.state[parameters[name]][key] = joined(piece, parameters[name])
    for name, state in content["state"].items():
        inner.state[parameters[name]].update(state)
    for group, saved in zip(inner.param_groups, content["groups"], strict=True):
        for key, value in saved.items():
            # JSON knows no tuples.
            group[key] = tuple(value) if isinstance(value, list) else value
