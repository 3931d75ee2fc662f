"""The folders of one learning: that they lie apart, and that a resumed command names those it was begun with."""

import os
from pathlib import Path
from typing import Any

from seekr_cl.errors import ConfigError


def checkpoints_of(output: Path) -> Path:
    """Where a learning into ``output`` saves its state meanwhile."""
    if output.name in ("", ".."):  # what is beside a folder is found by its name
        output = Path(os.path.abspath(output))
    return output.parent / f"{output.name}.checkpoints"


def refuse_overlap(memory: Path, output: Path, checkpoints: Path) -> None:
    """Refuses folders of which one is, or lies in, another: what one of them replaces would be the other's.

    Args:
        memory: the memory's.
        output: the new model's.
        checkpoints: the interrupted learning's.

    Raises:
        ConfigError: naming both.
    """
    given = {"--memory": memory, "--output": output, "the checkpoints' folder": checkpoints}
    # Once each: this is asked of every folder above them.
    real = {name: place.resolve() for name, place in given.items()}
    named = list(given)
    for number, one in enumerate(named):
        for other in named[number + 1 :]:
            if _same(real[one], real[other]):
                raise ConfigError(f"{one} and {other}: both are {given[one]}; the model needs a folder of its own")
            for inner, outer in ((one, other), (other, one)):
                if any(_same(above, real[outer]) for above in real[inner].parents):
                    raise ConfigError(
                        f"{inner}: {given[inner]} lies in {outer} ({given[outer]}); choose a folder outside it"
                    )


def places_of(memory: Path, output: Path, checkpoints: Path) -> dict[str, Any]:
    """Where memory and output lie: in full, and as seen from where the checkpoints are, for folders moved together."""
    home = checkpoints.resolve().parent
    return {
        name: [str(place.resolve()), os.path.relpath(place.resolve(), home)]
        for name, place in (("memory", memory), ("output", output))
    }


def check_places(saved: dict[str, Any] | None, now: dict[str, Any], checkpoints: Path) -> None:
    """Refuses to go on in other folders than those it was begun in.

    Args:
        saved: ``places_of`` when the checkpoint was written; former releases wrote none.
        now: ``places_of`` of the resumed command.
        checkpoints: for the message.

    Raises:
        ConfigError: naming the option and the folder it had.
    """
    for name, (place, beside) in now.items():
        before = (saved or {}).get(name)
        if before is not None and place != before[0] and beside != before[1]:
            raise ConfigError(
                f"--{name}: {checkpoints} was begun with {before[0]}, now {place}; resume with the former, or remove "
                "the checkpoints to begin again"
            )


def _same(one: Path, other: Path) -> bool:
    """Whether two resolved paths are one folder, as of a bind mount; they need not exist."""
    if one == other:
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
