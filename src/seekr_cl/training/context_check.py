"""Whether examples and the prompts that a method learns fit into the model's context together."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.config.tried import require_schedulable
from seekr_cl.distributed import collectives
from seekr_cl.errors import DataError
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.claims import Limits, check_fits
from seekr_cl.models.context import context_length
from seekr_cl.models.whole import require_known, token_rows
from seekr_cl.tasks import Encoded, Encoder, Example, Task


def check_memory(store: ReplayMemory, model: PreTrainedModel) -> None:
    """Makes sure that a memory, which may be a stranger's, is about tokens, layers and heads that the model has.

    Args:
        store: of which every sample is read.
        model: before it is sharded.

    Raises:
        MemoryFormatError: naming what the model has not.
    """
    config = model.config.get_text_config()

    def said(key: str) -> int | None:
        value = getattr(config, key, None)
        return value if type(value) is int else None

    rows, outputs = token_rows(model), model.get_output_embeddings()
    width = max(rows, getattr(outputs, "out_features", 0), said("vocab_size") or 0)
    limits = Limits(rows, width, said("num_hidden_layers"), said("num_attention_heads"), context_length(model))
    layers = () if store.importance is None else store.importance.layers
    collectives.on_main(lambda: check_fits(store.tasks, layers, limits, str(store.path)))


def check_task(
    model: PreTrainedModel,
    config: SeekrConfig,
    task: Task,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    number: int = 1,
    last: int = 1,
) -> None:
    """Makes sure that a task can be learned: its schedule, its tokens, room for them beside a method's virtual tokens.

    Args:
        model: before any of the tasks, with the prompts that it comes with.
        config: all settings.
        task: what is learned.
        examples: its training examples.
        encoded: their tokens.
        number: which task of those that are to be learned this is, from 1.
        last: how many these are.

    Raises:
        SeekrError: naming the task and, where one is too long, the first example that does not fit and what to set.
    """
    require_schedulable(task.name, len(examples), float(task.epochs or config.num_train_epochs))
    context, virtual = context_length(model), _virtual(model, config, number)
    for example, item in zip(examples, encoded, strict=True):
        length = len(item.input_ids)
        if virtual and context is not None and length + virtual > context:
            raise DataError(
                f"{example.source or 'an example'}: task '{task.name}': its {length} tokens and {virtual} virtual "
                f"tokens of prompts before them are more than the model's context of {context}; "
                f"{_remedy(config, context, _virtual(model, config, last), last)}"
            )
    check_tokens(model, task.name, (item.input_ids for item in encoded))


def check_tokens(model: PreTrainedModel, name: str, texts: Iterable[Sequence[int]]) -> None:
    """Makes sure that the model has a vector for every token of a task's texts.

    Raises:
        DataError: naming the task and the token.
    """
    rows = token_rows(model)
    for ids in texts:
        require_known(ids, rows, f"task '{name}'")


def tests_encoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: SeekrConfig, encoder: Encoder, last: int
) -> Encoder:
    """The encoder with which tests are answered after the last task, when the most virtual tokens stand before them.

    Args:
        model: before any of the tasks.
        tokenizer: its tokenizer.
        config: all settings.
        encoder: for this model as it is.
        last: how many tasks are to be learned; ``check_task`` has found room for each.
    """
    context, virtual = context_length(model), _virtual(model, config, last)
    if not virtual or context is None:
        return encoder
    length = min(encoder.max_length, context - virtual)
    return Encoder(
        tokenizer, length, encoder.prompt_boundary, config.max_prompt_length, config.max_answer_length, config.chat
    )


def _virtual(model: PreTrainedModel, config: SeekrConfig, number: int) -> int:
    return config.method.kind.virtual_tokens(config.method.settings, model, number)


def _remedy(config: SeekrConfig, context: int, virtual: int, last: int) -> str:
    shorter = "make prompts shorter (method.prompt_length)"
    if hasattr(config.method.settings, "top"):
        shorter += " or pick fewer (method.top)"
    if virtual >= context:
        those = "they" if last == 1 else f"those of {last} tasks"
        return f"{shorter}: {those} leave nothing of the context"
    until = f", which leaves room until task {last}" if last > 1 else ""
    return f"set max_length to at most {context - virtual}{until}, or {shorter}"
