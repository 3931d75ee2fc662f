"""The processes of one training: how many there are, what each does of a work, what they agree on.

Whatever launcher starts them (accelerate, torchrun), accelerate forms the process group. Without a group there is one
process and every function here is the identity. What goes from one process to another are JSON and
safetensors, as on disk.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from safetensors.torch import load, save
from torch import Tensor

from seekr_cl import errors
from seekr_cl.environment import environment_number
from seekr_cl.errors import SeekrError
from seekr_cl.os_errors import named

Result = TypeVar("Result")
Tensors = dict[str, Tensor]

LOST = 69
"""Exit code of a process that cannot reach the others any more, while no rank reported an error."""
LAUNCHER = "SEEKR_LAUNCHER"
"""Set in the environment of processes whose launcher says in their place why they are gone."""

_PATIENCE = timedelta(seconds=5)
"""How long a process that gives up waits for word from the others."""
_AGES = timedelta(weeks=1)
"""How long a process that is done waits for one that evaluates; one that dies is noticed by its closed connection."""


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def launched_world_size() -> int:
    """How many processes the launcher says it started, whether or not they have found each other."""
    return environment_number("WORLD_SIZE", 1)


def launched_rank() -> int:
    """Which of them this is."""
    return environment_number("RANK", 0)


def init_process_group() -> torch.device:
    """Makes launched processes find each other where no Trainer does it; alone there is nothing to find.

    Returns:
        where this process computes: its GPU if there is one, unless the launcher was told to use CPUs.

    Raises:
        ConfigError: if they do not find each other.
    """
    cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    if launched_world_size() == 1:
        return torch.device("cpu" if cpu else "cuda")
    try:
        device: torch.device = PartialState(cpu=cpu, timeout=_AGES).device
    except (ValueError, RuntimeError, ImportError) as error:
        raise errors.ConfigError(f"launched processes cannot find each other: {error}") from error
    require_all_ranks()
    return device


def require_all_ranks() -> None:
    """Makes sure that all launched processes have found each other.

    Raises:
        ConfigError: if some are missing.
    """
    if world_size() != launched_world_size():
        raise errors.ConfigError(
            f"{launched_world_size()} processes were launched, but {world_size()} work together; "
            "find the launcher's problem with 'accelerate test'"
        )


def barrier() -> None:
    """Returns when all processes have come here."""
    if world_size() > 1:
        all_reduce_sum(torch.zeros(1))


def on_main(work: Callable[[], Result]) -> Result | None:
    """Lets process 0 do something that must be done once, such as writing; all go on when it is done.

    Returns:
        What ``work`` gave, in process 0; ``None`` elsewhere.

    Raises:
        SeekrError: the one that ``work`` raised, in all processes.
    """
    if world_size() == 1:
        return work()
    result, failure = None, None
    if is_main():
        try:
            with named():
                result = work()
        except SeekrError as error:
            failure = error
    _raise_if_any([broadcast_object(_described(failure))], failure)
    return result


def on_main_broadcast(work: Callable[[], Result]) -> Result:
    """``on_main`` for something that all need: what ``work`` gave in process 0, in all processes; it must be JSON."""
    return broadcast_object(on_main(work))


def on_each_rank(work: Callable[[], Result]) -> list[Result]:
    """Every process does its own part; all go on when all are done.

    Returns:
        What ``work`` gave in each process; it must be JSON.

    Raises:
        SeekrError: the first that ``work`` raised anywhere, in all processes.
    """
    result, failure = None, None
    try:
        with named():
            result = work()
    except SeekrError as error:
        failure = error
    if world_size() == 1 and failure is not None:
        raise failure
    told = all_gather_object([result, _described(failure)])
    _raise_if_any([said for _, said in told], failure)
    return [found for found, _ in told]


def broadcast_object(content: Any) -> Any:
    """Process 0's JSON, in all processes."""
    return content if world_size() == 1 else json.loads(_spread_bytes(json.dumps(content).encode(), 0))


def all_gather_object(content: Any) -> list[Any]:
    """Every process's JSON, in the processes' order."""
    if world_size() == 1:
        return [content]
    text = json.dumps(content).encode()
    return [json.loads(_spread_bytes(text, number)) for number in range(world_size())]


def all_gather_tensors(tensors: Tensors) -> list[Tensors]:
    """Every process's tensors, in the processes' order, on the CPU."""
    if world_size() == 1:
        return [tensors]
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return [load(_spread_bytes(content, number)) for number in range(world_size())]


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of every process's tensor of this shape."""
    if world_size() == 1:
        return values
    place = values.device
    summed = values.detach().clone().to(_device())
    dist.all_reduce(summed)
    return summed.to(place)


def all_reduce_max(value: int) -> int:
    """The largest of all processes' numbers."""
    if world_size() == 1:
        return value
    found = torch.tensor([value], device=_device())
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def report(message: str) -> bool:
    """Leaves word that this process gives up, so that the others know why it is gone.

    Returns:
        Whether it is this process that should say so: process 0 if it gives up too, whoever else does otherwise.
    """
    board = _board()
    if board is None:
        return True
    board.set(f"{_failed()}/{launched_rank()}", message)
    board.set(_failed(), str(launched_rank()))
    return launched_rank() == 0 or not _appears(board, f"{_failed()}/0")


def reported() -> bool:
    """Whether another rank reported an error."""
    board = _board()
    return board is not None and _appears(board, _failed())


def lost(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached any more; gloo has no class of its own for it."""
    return world_size() > 1 and "gloo/transport" in str(error)


def shard_indices(length: int) -> Iterator[tuple[int, bool]]:
    """The places in a list of this length that are this process's to work on.

    All processes take the same number of turns, because the passes of a sharded model need all of them: who has nothing
    left repeats the last place.

    Yields:
        a place, and whether its result counts.
    """
    for start in range(0, length, world_size()):
        place = start + rank()
        yield min(place, length - 1), place < length


def gather_sharded(parts: Mapping[int, Tensors], length: int) -> list[Tensors]:
    """What all processes made of a list, in its order: ``parts`` by place, as ``shard_indices`` gave the places."""
    if world_size() == 1:
        return [parts[place] for place in range(length)]
    named = {f"{place}/{name}": tensor for place, tensors in parts.items() for name, tensor in tensors.items()}
    whole: list[Tensors] = [{} for _ in range(length)]
    for tensors in all_gather_tensors(named):
        for full, tensor in tensors.items():
            place, _, name = full.partition("/")
            whole[int(place)][name] = tensor
    return whole


def _described(failure: SeekrError | None) -> list[str] | None:
    return None if failure is None else [type(failure).__name__, str(failure)]


def _raise_if_any(described: list[list[str] | None], own: SeekrError | None) -> None:
    """Raises this process's own failure, or else the first of those that others have described."""
    for told in described:
        if told is not None:
            raise own or getattr(errors, told[0], SeekrError)(told[1])


def _failed() -> str:
    return f"seekr-failed-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _board() -> Any:
    """The launcher's key-value store, which outlives every process of the training."""
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_PATIENCE)
    except (KeyError, ValueError, RuntimeError):
        return None


def _appears(board: Any, key: str) -> bool:
    # The store's own wait prints lines of its own when the time is over.
    end = time.monotonic() + _PATIENCE.total_seconds()
    try:
        while not board.check([key]):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
    except RuntimeError:
        return False
    return True


def _device() -> torch.device:
    """Where the group's tensors have to be."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else torch.device("cpu")


def _spread_bytes(content: bytes, source: int) -> bytes:
    length = torch.tensor([len(content)], device=_device())
    dist.broadcast(length, source)
    mine = source == rank()
    # frombuffer refuses an empty buffer and warns of one that cannot be written to.
    data = torch.frombuffer(bytearray(content) if mine else bytearray(int(length)), dtype=torch.uint8).to(_device())
    dist.broadcast(data, source)
    return content if mine else data.cpu().numpy().tobytes()
