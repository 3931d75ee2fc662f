"""What about several runs is not the same, and what that does to a comparison of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Files = tuple[dict[str, Any], dict[str, Any]]
"""``scores.json`` and ``run.json``."""


def differences(runs: Mapping[str, Files], seeds: Mapping[str, Sequence[int]]) -> tuple[list[str], list[str]]:
    """Compares every run with the first.

    Args:
        runs: by name.
        seeds: the seeds of each method.

    Returns:
        Sentences about what makes scores not comparable, and about what is worth knowing.
    """
    blocking = [line for aspect in _ASPECTS for line in _compare(runs, *aspect)]
    first = next(iter(runs))
    notes = []
    for name, (scores, ledger) in runs.items():
        done, tasks = len(scores["matrix"]) - (scores["base"] is not None), len(scores["tasks"])
        if not scores.get("joint") and done < tasks:
            blocking.append(f"{name} has learned {done} of {tasks} tasks: OP and BWT are not over the same tasks")
        notes += _settings(first, runs[first][1], name, ledger)
    notes += [line for about in _NOTED for line in _compare(runs, *about)]
    for method, own in seeds.items():
        doubled = sorted({seed for seed in own if own.count(seed) > 1})
        if doubled:
            blocking.append(f"{method}: several runs with seed {doubled[0]}; they are not independent seeds")
        if 1 < len(own) < 5:
            notes.append(f"{method}: an interval over {len(own)} seeds is a rough one")
    if len({tuple(sorted(own)) for own in seeds.values()}) > 1:
        shown = "; ".join(f"{method}: {', '.join(map(str, sorted(own)))}" for method, own in seeds.items())
        notes.append(f"the methods have different seeds ({shown})")
    return blocking, notes


def _epochs(scores: dict[str, Any], ledger: dict[str, Any]) -> list[Any]:
    default = ledger.get("training", {}).get("num_train_epochs")
    return [task.get("epochs") or default for task in ledger["tasks"]]


def _evaluated(key: str) -> Callable[..., Any]:
    return lambda scores, ledger: scores.get("evaluation", {}).get(key, "not recorded")


def _batch(scores: dict[str, Any], ledger: dict[str, Any]) -> Any:
    evaluation = scores.get("evaluation", {})
    # In float32 on a CPU no batch size changes an answer.
    if evaluation.get("same_for_any_batch_size"):
        return "any"
    sizes = (evaluation.get(key) for key in ("batch_size", "batch_tokens"))
    said = [f"{size} {unit}" for size, unit in zip(sizes, ("rows", "tokens")) if size is not None]
    return " or ".join(said) or "not recorded"


def _by_task(*keys: str) -> Callable[..., Any]:
    return lambda scores, ledger: {task["name"]: [task.get(key) for key in keys] for task in ledger["tasks"]}


_ASPECTS: tuple[tuple[str, Callable[..., Any], bool], ...] = (
    ("tasks", lambda scores, ledger: sorted(scores["tasks"]), True),
    ("task order", lambda scores, ledger: scores["tasks"], True),
    ("metrics", lambda scores, ledger: dict(zip(scores["tasks"], scores["metrics"])), True),
    ("training data (variant, size or texts)", _by_task("fingerprint"), False),
    ("test sets (texts, references or longest answer)", _by_task("test"), False),
    ("epochs of the tasks", _epochs, True),
    ("base model", lambda scores, ledger: ledger.get("model_sha256") or ledger.get("model"), False),
    ("conventions of OP, BWT, FWT or forgetting", lambda scores, ledger: scores.get("conventions"), False),
    ("evaluation engine", _evaluated("engine"), True),
    ("evaluation dtype", _evaluated("dtype"), True),
    ("decoding", _evaluated("decoding"), True),
    ("longest prompt and answer", _evaluated("max_length"), True),
    ("benchmark or deviations from it", lambda scores, ledger: scores.get("benchmark") or {}, False),
    ("prompt boundary", _evaluated("prompt_boundary"), True),
)
_NOTED: tuple[tuple[str, Callable[..., Any], bool], ...] = (
    ("evaluation batch size, which changes single answers here", _batch, True),
    ("version of the evaluation engine", _evaluated("version"), True),
    ("device, so seconds say little", _evaluated("device"), True),
    ("machine, so seconds say little", lambda scores, ledger: ledger.get("machine"), False),
    ("library versions", lambda scores, ledger: ledger.get("versions"), True),
)


def _compare(runs: Mapping[str, Files], what: str, get: Callable[..., Any], show: bool) -> list[str]:
    """One sentence an aspect: who differs from the first, and in what where that is short."""
    first = next(iter(runs))
    values = {name: get(*files) for name, files in runs.items()}
    others = [name for name in runs if values[name] != values[first]]
    if not others:
        return []
    detail = ""
    if isinstance(values[first], dict):
        keys = dict.fromkeys(key for value in values.values() for key in value)
        shared = [key for key in keys if any(values[name].get(key) != values[first].get(key) for name in others)]
        detail = f" ({', '.join(map(str, shared[:4]))}{', …' if len(shared) > 4 else ''})" if shared else ""
    if show and not isinstance(values[first], dict):
        shown = [str(values[first]), str(values[others[0]])]
        detail = f" ({shown[0]} against {shown[1]})" if len("".join(shown)) < 200 else ""
    return [f"different {what}{detail}: {first} against {', '.join(others)}"]


def _settings(first: str, one: dict[str, Any], name: str, other: dict[str, Any]) -> list[str]:
    ours, theirs = one.get("training", {}), other.get("training", {})
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    keys = [key for key in keys if key not in ("num_train_epochs", "measure_every")]
    shown = ", ".join(f"{key} {ours.get(key)} against {theirs.get(key)}" for key in keys[:6])
    return [f"trained with other settings: {first} against {name}: {shown}"] if keys else []
