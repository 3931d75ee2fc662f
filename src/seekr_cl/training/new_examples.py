"""What a method trains on in place of a task's examples."""

from collections.abc import Sequence

from seekr_cl.errors import ConfigError
from seekr_cl.methods import Method
from seekr_cl.tasks import Encoded, Task


def new_examples(
    method: Method, tasks: Sequence[Task], encoded: Sequence[Sequence[Encoded]], max_length: int
) -> list[list[Encoded]]:
    """Each task's examples as the method wants to train on them.

    Args:
        method: is asked once for each task.
        tasks: what is learned.
        encoded: the examples of each.
        max_length: the most tokens that one may have.

    Raises:
        ConfigError: if the method gives nothing that can be trained on.
    """
    made = []
    for task, examples in zip(tasks, encoded, strict=True):
        given = list(method.new_examples(examples))
        where = f"method {method.name}: new_examples of task '{task.name}'"
        if not given:
            raise ConfigError(f"{where} leaves nothing to train on; return at least one example")
        for number, one in enumerate(given):
            if not isinstance(one, Encoded):
                raise ConfigError(f"{where}: item {number} is a {type(one).__name__}; return seekr_cl.tasks.Encoded")
            if len(one.input_ids) > max_length:
                raise ConfigError(
                    f"{where}: item {number} has {len(one.input_ids)} tokens; cut it to the max_length of {max_length}"
                )
            if not one.learnable:
                raise ConfigError(f"{where}: item {number} has no token to learn; leave it out")
        made.append(given)
    return made
