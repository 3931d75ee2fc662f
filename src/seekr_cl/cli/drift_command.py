"""``seekr drift``: how far a model has moved from the base model and from the one before its last task."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from seekr_cl.cli.output import out
from seekr_cl.errors import ConfigError, DataError, ModelError
from seekr_cl.memory import ReplayMemory, accepted_hashes
from seekr_cl.models.context import context_length
from seekr_cl.models.loading import load_model
from seekr_cl.models.whole import token_rows
from seekr_cl.report.verdict import KINDS
from seekr_cl.runs.drift import DRIFT, Reference, compare_text, drift, prompt_groups, read_text, text_losses, that_fit
from seekr_cl.system import reading
from seekr_cl.system.files import write_json
from seekr_cl.system.paths import in_order
from seekr_cl.system.visible import one_line
from seekr_cl.tasks.keys import DataWarning
from seekr_cl.training.probing import ProbeSet

_OPTIONS = ("model", "base", "previous", "memory")


def drift_command(given: Any) -> None:
    """Prints KL and losses as a table, and writes them where there is an output."""
    _settle(given)
    if given.limit < 1:
        raise ConfigError(f"--limit: {given.limit} must be at least 1")
    if not given.memory and not given.text:
        raise ConfigError("drift: nothing to compare on; name a memory with --memory, plain text with --text, or both")
    memory = ReplayMemory.open(given.memory) if given.memory else None
    groups = prompt_groups(memory, given.limit) if memory is not None else []
    model, tokenizer = _load(given.model, given.dtype)
    if memory is not None and memory.tokenizer_sha256 not in (None, *accepted_hashes(tokenizer)):
        raise DataError(f"{given.memory}: its tokens are another tokenizer's than {given.model}'s; name its own model")
    references = [
        Reference(name, _load(source, given.dtype)[0])
        for name, source in (("base", given.base), ("previous", given.previous))
        if source
    ]
    every = {"model": model} | {one.name: one.model for one in references}
    _require_alike(every, groups)
    groups, left_out = that_fit(groups, every)
    for told in left_out:
        warnings.warn(f"drift: {told}; they are left out", DataWarning, stacklevel=2)
    content: dict[str, Any] = {"model": given.model, "base": given.base, "previous": given.previous}
    content |= {
        "memory": given.memory,
        "dtype": given.dtype,
        "kl": drift(model, references, groups),
        "left_out": left_out,
    }
    content["text"] = None
    if given.text:
        contexts = [length for one in every.values() if (length := context_length(one)) is not None]
        windows = read_text(Path(given.text), tokenizer, min(contexts, default=None), given.limit)
        content["text"] = compare_text({name: _losses(name, one, windows) for name, one in every.items()})
    if given.output:
        write_json(Path(given.output) / DRIFT, content)
    if given.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    _show(content)
    if given.output:
        out().print(f"{DRIFT} in {given.output}", soft_wrap=True)


def _settle(given: Any) -> None:
    """The models and the memory: of a run, or as they were named."""
    if given.run is None:
        if not (given.model and given.base):
            raise ConfigError("drift: name the folder of a run, or --model and --base")
        return
    named = [f"--{name}" for name in _OPTIONS if getattr(given, name)]
    if named:
        raise ConfigError(f"{named[0]}: a run has its own; leave it out, or leave out the run")
    run = Path(given.run)
    try:
        base = reading.read_json(run / "run.json")["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{run / 'run.json'}: not readable ({error}); name the --output folder of a seekr run"
        ) from error
    models = in_order(path for path in (run / "models").glob("[0-9]*-*") if path.is_dir())
    if not models:
        raise DataError(f"{run}: has no model yet; continue with seekr run --resume")
    given.model, given.base = str(models[-1]), str(base)
    given.previous = str(models[-2]) if len(models) > 1 else None
    given.memory = str(run / "memory") if _has_samples(run / "memory") else None
    given.output = given.output or str(run)


def _has_samples(folder: Path) -> bool:
    return folder.is_dir() and any(task.totals.samples for task in ReplayMemory.open(folder).tasks)


def _load(source: str, dtype: str) -> tuple[Any, Any]:
    model, tokenizer = load_model(source, dtype)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return model.eval(), tokenizer


def _losses(name: str, model: Any, windows: Any) -> Any:
    try:
        return text_losses(model, windows)
    except DataError as error:
        raise DataError(f"drift: {name}: {error}") from error


def _require_alike(models: dict[str, Any], groups: list[ProbeSet]) -> None:
    """Distributions over other vocabularies cannot be compared, nor tokens be asked that a model does not know."""
    sizes = {name: token_rows(one) for name, one in models.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ModelError(
            f"drift: the models have vocabularies of different sizes ({told}); compare models of one family"
        )
    largest = max((int(probe.ids_L.max()) for group in groups for probe in group.probes), default=0)
    if largest >= min(sizes.values()):
        raise ModelError(
            f"drift: the memory has token {largest}, and the models know {min(sizes.values())}; take its own"
        )


def _show(content: dict[str, Any]) -> None:
    if content["kl"]:
        table = Table("KL in nats a token, from", "on", "what", "KL", "95% interval", "samples")
        for one in content["kl"]:
            low, high = one["interval"]
            source = "base to itself (noise)" if one["against"] == "itself" else f"{one['against']} to model"
            table.add_row(
                source, Text(one_line(one["task"], None)), KINDS[one["kind"]], f"{one['kl']:.4g}",
                f"{low:.4g} to {high:.4g}", str(one["samples"]),
            )  # fmt: skip
        out().print(table)
    if content["text"]:
        table = Table("loss on plain text, nats a token", "loss", "the model's rise above it", "95% interval")
        for name in ("model", "base", "previous"):
            one = content["text"].get(name)
            if one is not None:
                rise = (
                    [f"{one['rise']:+.4f}", "{:+.4f} to {:+.4f}".format(*one["interval"])]
                    if "rise" in one
                    else ["", ""]
                )
                table.add_row(name, f"{one['loss']:.4f}", *rise)
        out().print(table)
