"""``seekr inspect``: what is taught, token by token."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import AutoConfig

from seekr_cl.config.chat import set_template
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.errors import ConfigError, ModelError, first_line
from seekr_cl.models.context import context_length
from seekr_cl.models.loading import load_tokenizer
from seekr_cl.system.visible import visible
from seekr_cl.tasks import Encoder, Example, Task
from seekr_cl.tasks.collate import IGNORE, Spans, labels_of
from seekr_cl.training.fitting import encoder_within

_LEARNT = "bold green"


def inspect(given: Any, config: SeekrConfig, console: Console) -> None:
    """Prints the first examples of a task as they are taught.

    Args:
        given: the command's options.
        config: all settings.
        console: where to print.

    Raises:
        SeekrError: for a model, a task or a row that cannot be used.
    """
    if given.examples < 1:
        raise ConfigError(f"-n: {given.examples} must be at least 1")
    tokenizer = load_tokenizer(given.model, config.trust_remote_code)
    set_template(tokenizer, config.chat_template)
    encoder = encoder_within(config, tokenizer, _context(given.model, config))
    task = Task.load(given.task, columns=given.columns, allow_empty=given.allow_empty)
    shown = (_described(encoder, example) for example in task.train[: given.examples])
    if given.json:
        print(json.dumps(list(shown), indent=2))
        return
    for one in shown:
        _show(one, console)
    console.print(
        f"{min(given.examples, len(task.train))} of {len(task.train)} examples; max_length {encoder.max_length}"
    )


def _context(model: str, config: SeekrConfig) -> int | None:
    """The model's context; ``None`` where there is a tokenizer and no model."""
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        return None
    try:
        found = AutoConfig.from_pretrained(model, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        raise ModelError(f"{model}: its config.json cannot be read ({first_line(error)})") from error
    return context_length(SimpleNamespace(config=found))  # type: ignore[arg-type]


def _described(encoder: Encoder, example: Example) -> dict[str, Any]:
    shown = encoder.show(example)
    ids = shown.encoded.input_ids
    labels = labels_of(ids, shown.encoded.spans)
    # Nothing stands before the first token that it could be predicted from.
    labels[0] = IGNORE
    return {
        "source": example.source,
        "read_as": example.read_as,
        "text": shown.text,
        "learnt": [list(span) for span in shown.learnt],
        "ids": ids,
        "labels": labels,
        "tokens": len(ids),
        "tokens_learnt": sum(label != IGNORE for label in labels),
        "tokens_cut": shown.encoded.prompt_tokens_cut,
    }


def _show(one: dict[str, Any], console: Console) -> None:
    cut = f", {one['tokens_cut']} truncated on the left" if one["tokens_cut"] else ""
    console.print(
        Text(
            f"{visible(one['source'])}: read as {one['read_as']}; {one['tokens']} tokens, "
            f"{one['tokens_learnt']} learned{cut}",
            style="bold",
        ),
        soft_wrap=True,
    )
    parts = _marked(_pieces(one["text"], one["learnt"]), "", console)
    console.print(parts, soft_wrap=True)
    spans = _runs(one["labels"])
    words = [str(number) for number in one["ids"]]
    pieces = ((" ".join(words[begin:end]), learnt) for begin, end, learnt in _borders(len(words), spans))
    console.print(Text("ids: ").append_text(_marked(pieces, " ", console)), soft_wrap=True)
    console.print()


def _marked(pieces: Iterable[tuple[str, bool]], between: str, console: Console) -> Text:
    """Learned pieces in color; in brackets where there is none."""
    text = Text()
    for number, (piece, learnt) in enumerate(pieces):
        if number:
            text.append(between)
        if learnt and not console.is_terminal:
            text.append(f"[{visible(piece)}]")
        else:
            text.append(visible(piece), style=_LEARNT if learnt else None)
    return text


def _pieces(text: str, spans: Spans) -> Iterator[tuple[str, bool]]:
    for begin, end, learnt in _borders(len(text), spans):
        yield text[begin:end], learnt


def _borders(length: int, spans: Spans) -> Iterator[tuple[int, int, bool]]:
    """What is learned and what lies between, without empty pieces."""
    former = 0
    for begin, end in spans:
        if begin > former:
            yield former, begin, False
        yield begin, end, True
        former = end
    if former < length:
        yield former, length, False


def _runs(labels: list[int]) -> Spans:
    """Begin and end of each run of labels."""
    edges = [n for n, label in enumerate(labels) if (label == IGNORE) != ((labels[n - 1] if n else IGNORE) == IGNORE)]
    if len(edges) % 2:
        edges.append(len(labels))
    return tuple(zip(edges[::2], edges[1::2]))
