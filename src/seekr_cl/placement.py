"""Where a setting belongs that was written in the wrong place: at the top, in a task, under ``replay``, an option, ...

Each module declares the keys of the place that it reads, so that a message in any place knows of all the others.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from seekr_cl.errors import nearest

TOP, TASK, PEFT, BENCHMARK = "the top", "a task", "peft", "benchmark"
_LAST = (BENCHMARK,)
"""Places that are meant only by keys that no other has."""

OTHER_WORDS: dict[str, dict[str, str]] = {
    TOP: {
        "lr": "learning_rate",
        "epochs": "num_train_epochs",
        "num_epochs": "num_train_epochs",
        "batch_size": "per_device_train_batch_size",
        "train_batch_size": "per_device_train_batch_size",
        "micro_batch_size": "per_device_train_batch_size",
        "eval_batch_size": "per_device_eval_batch_size",
        "max_seq_length": "max_length",
        "max_seq_len": "max_length",
        "sequence_len": "max_length",
        "scheduler": "lr_scheduler_type",
        "lr_scheduler": "lr_scheduler_type",
        "optimizer": "optim",
        "torch_dtype": "dtype",
        "load_in_4bit": "quantization: 4bit",
        "lora": "peft: lora",
        "adapter": "peft: lora",
        "peft_config": "peft",
        "lora_r": "peft: {r: ...}",
        "lora_rank": "peft: {r: ...}",
        "model_name_or_path": "model (in a stream) or --model",
        "output_dir": "--output",
        "dataset": "tasks (in a stream) or --task",
        "datasets": "tasks (in a stream) or --task",
    },
    TASK: {
        "path": "data",
        "file": "data",
        "train": "data",
        "validation": "eval",
        "num_train_epochs": "epochs",
        "max_tokens": "max_new_tokens",
    },
    PEFT: {"type": "peft_type", "rank": "r", "lora_rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"},
    "evaluate": {
        "metric": "--metric",
        "max_new_tokens": "--max-new-tokens",
        "batch_size": "--batch-size",
        "per_device_eval_batch_size": "--batch-size",
        "max_length": "--max-length",
        "dtype": "--dtype",
        "quantization": "--quantization",
        "limit": "--limit",
    },
    "replay": {"size": "samples", "fraction": "ratio", "frequency": "every"},
}
"""What other tools call a setting, by place: the name it has here."""


@dataclass(frozen=True, slots=True)
class _Place:
    listed: Callable[[], Iterable[str]]
    how: Callable[[str], str]
    of_others: Callable[[str], str] | None


_places: dict[str, _Place] = {}


def declare(
    place: str,
    keys: Callable[[], Iterable[str]],
    how: Callable[[str], str],
    of_others: Callable[[str], str] | None = None,
) -> None:
    """Makes the keys of a place known; of several places with the same key, the one declared first is named.

    Args:
        place: its name.
        keys: gives them; asked when a message is made.
        how: from a key to words on where it belongs, such as "it belongs to a task's entry".
        of_others: the same for a key that stands in the right place, and is none of what was chosen there.
    """
    _places[place] = _Place(keys, how, of_others)


def under(section: str) -> Callable[[str], str]:
    """How a key of a section is written: the ``how`` of ``declare``."""
    return lambda key: (
        f"it belongs under {section}: write {section}.{key}=VALUE, or {section}: {{{key}: VALUE}} in YAML"
    )


def unknown(key: object, place: str, known: Iterable[str], listed: bool = True) -> str:
    """What to say of an unknown key: where it belongs, or which one was meant.

    Args:
        key: as it was written.
        place: where it was written.
        known: the keys that would have been right there.
        listed: whether to list them where nothing better is known.

    Returns:
        ``"unknown key 'x'; it belongs ..."``, ``"unknown key 'x'; did you mean 'y'? (known: ...)"``, or the like.
    """
    names, word = list(known), str(key)
    if right := _right_place(word, place):
        return f"unknown key {word!r}; {right}"
    slip = nearest(word, names)
    if not slip and (right := _where(word, _LAST, place)):
        return f"unknown key {word!r}; {right}"
    shown = f" (known: {', '.join(names) or 'none'})" if listed else ""
    return f"unknown key {word!r}{slip or _slip(word, place)}{shown}"


def _right_place(key: str, place: str) -> str:
    if hint := OTHER_WORDS.get(place, {}).get(key):
        return f"write {hint}"
    here = _places.get(place)
    if here is not None and here.of_others is not None and key in set(here.listed()):
        return here.of_others(key)
    return _where(key, [name for name in _places if name not in _LAST], place)


def _where(key: str, places: Iterable[str], but: str) -> str:
    """On the first of some places where a key is known; nothing if there is none."""
    for name in places:
        if name != but and name in _places and key in set(_places[name].listed()):
            return _places[name].how(key)
    return ""


def _slip(key: str, place: str) -> str:
    """The key of another place that was meant, and where it belongs."""
    others = sorted({known for name, one in _places.items() if name != place for known in one.listed()})
    guess = nearest(key, others)
    meant = next((one for one in others if f" {one!r}?" in guess), None)
    return f"{guess} {_where(meant, [*_places], place)}" if meant else ""
