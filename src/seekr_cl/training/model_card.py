"""The model card of a model that was learned: data, lineage, method, settings, citation, the base's license."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from seekr_cl.memory import MemoryTask
from seekr_cl.models.card import TAG, Base, base_of_model, card_text, escaped, own_card, replaced, section, split_card
from seekr_cl.tasks import Task
from seekr_cl.training.learning import Learning
from seekr_cl.version import __version__

USE, SCORES = "use", "scores"
"""Sections that are written anew when the model is merged or tested."""
NOT_TESTED = "Not tested by the run that made it, or not yet."
_PLAIN_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_REPO")
tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_REPO")
```"""
_ADAPTER_USE = """An adapter: its base model is loaded with it.

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER_OR_REPO")
tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_REPO")
```

`seekr export --merge ADAPTER_FOLDER OUTPUT` makes a plain model of it."""
_QUERY_USE = """Its adapters are chosen by the question, so it is loaded by the library that made it:

```python
from seekr_cl import load_model

model, tokenizer = load_model("FOLDER")
```"""


def learned_card(
    state: Learning, network: Any, tasks: Sequence[MemoryTask], kept: Sequence[int], training: dict[str, Any]
) -> str:
    """The card of the model that a learning has made.

    Args:
        state: the learning.
        network: the model as it is written.
        tasks: all that the memory will know of, in order.
        kept: how many samples of each.
        training: what the last task was trained with.
    """
    base = base_of_model(state.source.name)
    adapter = hasattr(network, "peft_config")
    method = state.config.method
    tags = [TAG, "continual-learning", method.name]
    data = _head(base, adapter, tags, state.tasks)
    names = ", ".join(escaped(task.name, 60) for task in tasks[-8:] if not task.info.get("general"))
    use = _QUERY_USE if getattr(network, "query_conditioned", False) else _ADAPTER_USE if adapter else _PLAIN_USE
    parts = [
        f"# {escaped(base.shown)}, taught {names}",
        f"Made from {escaped(base.shown)} by seekr-cl {__version__}, which teaches a language model one task after "
        "another without forgetting ([paper](https://arxiv.org/abs/2411.06171)).",
        "## Use",
        section(USE, use),
        "## Tasks learned",
        _lineage(state, tasks, kept),
        "## Scores",
        section(SCORES, NOT_TESTED),
        "## Training",
        _settings(state, training),
        "## Licence",
        _licence(base),
        "## Citation",
        _citation(method.kind.paper),
    ]
    return card_text(data, "\n\n".join(parts))


def merged_card(adapter: Path, source: str) -> str:
    """The card of a whole model that an adapter was merged into.

    Args:
        adapter: the adapter's folder, whose own card is taken over if it was written here.
        source: what the adapter's folder is called.
    """
    former = own_card(adapter)
    if former is None:
        base = base_of_model(source)
        data = _head(base, False, [TAG, "merged"], [])
        name = escaped(os.path.basename(os.path.abspath(source)))
        parts = [
            f"# {escaped(base.shown)} with {name}", f"The adapter {name} merged into its base model's weights.",
            "## Use", section(USE, _PLAIN_USE), "## Scores", section(SCORES, NOT_TESTED), "## Licence", _licence(base),
        ]  # fmt: skip
        return card_text(data, "\n\n".join(parts))
    data, body = split_card(former)
    data.library_name = "transformers"
    data.tags = [*(tag for tag in data.tags or [] if tag != "lora"), "merged"]
    if "base_model_relation" in data:
        data["base_model_relation"] = "finetune"
    return card_text(data, replaced(body, USE, f"{_PLAIN_USE}\n\nAn adapter has been merged into its weights."))


def _head(base: Base, adapter: bool, tags: list[str], tasks: Sequence[Task]) -> ModelCardData:
    more: dict[str, Any] = {}
    if base.repo is not None:
        more |= {"base_model": base.repo, "base_model_relation": "adapter" if adapter else "finetune"}
    else:
        more["base_model_name"] = base.shown
    sources = [task.train_source for task in tasks]
    hub = [source.removeprefix("hub:").split(":")[0] for source in sources if source.startswith("hub:")]
    return ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[*tags, *(["lora"] if adapter else [])],
        datasets=sorted(set(hub)) or None,
        language=base.language,
        **base.license,
        **more,
    )


def _lineage(state: Learning, tasks: Sequence[MemoryTask], kept: Sequence[int]) -> str:
    """Every task that the memory knows of, the new one last."""
    rows = ["| # | task | training examples | samples kept | learning rate | steps |", "|---|---|---|---|---|---|"]
    for number, task in enumerate(tasks, start=1):
        # The memory may be a stranger's, whose facts are of any kind.
        said = task.info.get("training")
        training = said if isinstance(said, Mapping) else {}
        about = " (general data)" if task.info.get("general") else ""
        cells = [task.info.get("examples", "-"), kept[number - 1], training.get("learning_rate", "-")]
        shown = [escaped(cell) for cell in [*cells, training.get("optimizer_steps", "-")]]
        rows.append(f"| {number} | {escaped(task.name)}{about} | {' | '.join(shown)} |")
    files = [f"{escaped(one.name)}: `{one.fingerprint()}`" for one in state.tasks]
    return "\n".join(rows) + "\n\nSHA-256 of the last task's texts: " + ", ".join(files)


def _settings(state: Learning, training: dict[str, Any]) -> str:
    config = state.config
    given = dict(config.method.settings.given()) if hasattr(config.method.settings, "given") else {}
    replay = config.replay.given() if config.method.kind.keeps else {}
    shown: dict[str, Any] = {
        "method": config.method.name,
        "preset": config.preset,
        **{f"method.{key}": value for key, value in given.items()},
        **{f"replay.{key}": value for key, value in replay.items()},
        "learning_rate": training.get("learning_rate"),
        "lr_scheduler_type": training.get("lr_scheduler_type"),
        "optim": training.get("optim"),
        "num_train_epochs": state.tasks[0].epochs or config.num_train_epochs,
        "batch": config.per_device_train_batch_size * config.gradient_accumulation_steps,
        "max_length": state.encoder.max_length,
        "weights": state.weights_dtype,
        "computed in": "bfloat16" if config.bf16 else "float16" if config.fp16 else None,
        "quantization": config.quantization,
        "adapter": None if config.peft is None else config.peft["peft_type"],
        "seed": config.seed,
    }
    rows = [f"| {escaped(key)} | {escaped(value)} |" for key, value in shown.items() if value is not None]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _licence(base: Base) -> str:
    if not base.license:
        return f"That of {escaped(base.shown)}, whose folder does not state it: look it up before you hand this on."
    name = base.license.get("license_name") or base.license["license"] if "license" in base.license else "see its card"
    return f"That of {escaped(base.shown)}: {escaped(name)}. The training data may have terms of its own."


def _citation(paper: Any) -> str:
    title, authors = (escaped(one) for one in (paper.title, paper.authors))
    return f"The method: {authors}: {title}, <{_url(paper.url)}>"


def _url(url: str) -> str:
    return "".join(sign for sign in url if sign.isascii() and sign.isprintable() and sign not in "<> ")
