"""A language model of a few thousand weights, a character tokenizer and toy tasks, for tests that really train."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from seekr_cl.attention.stored import StoredDense, StoredFactors, StoredOutputs
from seekr_cl.memory import MemoryTask, ReplayMemory, ReplaySample
from seekr_cl.methods import answers, get_method
from seekr_cl.tasks import Example, Task
from seekr_cl.training import LearnResult, SeekrConfig, config_from, learn

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 :=+-?.,äß中文"
LAYERS, HEADS = 2, 4

# Gradient descent without momentum: what differs by rounding before a step differs by rounding after it, whereas Adam
# turns the sign of a tiny gradient into a whole step.
PLAIN_SGD = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "weight_decay": 0.0}


def char_tokenizer(alphabet: str = ALPHABET) -> PreTrainedTokenizerFast:
    """One token for each character."""
    vocab = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *alphabet])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def save_base(folder: Path, family: str = "llama", seed: int = 0, attention_dropout: float = 0.0) -> Path:
    """A random grouped-query model of that family with its tokenizer."""
    tokenizer = char_tokenizer()
    kind = {"llama": LlamaConfig, "qwen3": Qwen3Config}[family]
    config = kind(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        tie_word_embeddings=False, initializer_range=0.15, attention_dropout=attention_dropout,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reverse_task(
    name: str = "reverse",
    count: int = 12,
    seed: int = 0,
    length: int | None = None,
    spaced: bool = False,
    most: int = 6,
) -> Task:
    """Letters to be written backwards; words of 2 to ``most``, or all of one ``length``; each a word if ``spaced``."""
    draw = random.Random(f"{name}{seed}")
    words = ["".join(draw.choices("abcdef", k=length or draw.randint(2, most))) for _ in range(count + 4)]
    examples = [Example(f"{' '.join(word) if spaced else word}=", word[::-1]) for word in words]
    return Task(name, examples[:count], test=examples[count:], max_new_tokens=8)


def constant_task(name: str, answer: str, count: int = 12, seed: int = 0, most: int = 5) -> Task:
    """The same answer whatever the question of 3 to ``most`` letters: learned in a few steps."""
    draw = random.Random(f"{name}{seed}")
    examples = [Example("".join(draw.choices("uvwxyz", k=draw.randint(3, most))) + "?", answer) for _ in range(count)]
    return Task(name, examples, test=examples[:3], max_new_tokens=4)


def two_tasks(
    count: int,
    length: int | None = None,
    answers: Sequence[str] = (),
    spaced: bool = False,
    most: int | None = None,
) -> list[Task]:
    """Two tasks that are alike, or with ``answers`` in conflict: the same kind of question, another answer."""
    names, wide = ("first", "second"), {} if most is None else {"most": most}
    if answers:
        return [constant_task(f"{name}-{answer}", answer, count, **wide) for name, answer in zip(names, answers)]
    return [reverse_task(name, count, seed, length, spaced, **wide) for seed, name in enumerate(names, start=1)]


def config_for(method: Any, folder: Path, **settings: Any) -> SeekrConfig:
    """A config for a CPU, silent, with a quarter of each task kept, and little asked of it before and after."""
    name = method if isinstance(method, str) else method["name"]
    defaults: dict[str, Any] = {
        "use_cpu": True, "progress": "none", "learning_rate": 1e-3, "per_device_train_batch_size": 4,
        "num_train_epochs": 1, "logging_steps": 1, "signal_dtype": "float32",
    }  # fmt: skip
    if get_method(name).keeps:
        defaults["replay"] = {"ratio": 0.25} | ({"every": 1} if get_method(name).replays else {})
        defaults["retention"] = {"samples": 1}
    return config_from(defaults | {"method": method} | settings, str(folder / "trainer"))


def teach(base: Path, folder: Path, tasks: list[Task], config: SeekrConfig) -> list[LearnResult]:
    """``learn`` once for each task; models go to ``folder/m1``, ``m2`` ..., the memory to ``folder/memory``."""
    done = []
    for number, task in enumerate(tasks, start=1):
        source = base if number == 1 else folder / f"m{number - 1}"
        done.append(learn(source, task, folder / "memory", folder / f"m{number}", config))
    return done


@contextmanager
def logits_in_chunks(positions: int | None) -> Iterator[None]:
    """Models met in here make the logits of no more positions at once; ``None`` leaves that to the library."""
    usual = answers.CHUNK_BYTES
    if positions is not None:
        answers.CHUNK_BYTES = 4 * len(char_tokenizer()) * positions
    try:
        yield
    finally:
        answers.CHUNK_BYTES = usual


def weights(folder: Path) -> dict[str, Tensor]:
    """A saved model's tensors, or an adapter's; of several adapters and what chooses them by file and name."""
    files = sorted([*folder.rglob("*model.safetensors"), *folder.glob("seekr_method.safetensors")])
    if len(files) == 1:
        return load_file(files[0])
    return {f"{file.relative_to(folder)}:{name}": t for file in files for name, t in load_file(file).items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], atol: float = 0.0) -> None:
    """Bit for bit, or within ``atol``."""
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


def differs(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether any tensor differs in any bit."""
    return left.keys() != right.keys() or any(not torch.equal(left[name], right[name]) for name in left)


def memory_tensors(memory: Path | ReplayMemory | list[MemoryTask]) -> dict[str, Tensor]:
    """Everything a memory holds, flat, heads included."""
    tasks = memory if isinstance(memory, list) else _opened(memory).tasks
    found: dict[str, Tensor] = {}
    for place, task in enumerate(tasks):
        for layer, heads in task.heads.items():
            found[f"{place}/heads/{layer}"] = torch.tensor(heads)
        found |= {f"{place}/teacher/{name}": tensor for name, tensor in (task.teacher or {}).items()}
        for number, sample in enumerate(task.samples):
            key = f"{place}/{number}"
            found[f"{key}/ids"] = sample.ids_L
            if sample.logits is not None:
                found |= {f"{key}/position": sample.logits.position_A, f"{key}/prob": sample.logits.decode()[0]}
                if sample.logits.token_AK is not None:
                    found[f"{key}/token"] = sample.logits.token_AK.long()
            if sample.attention is not None:
                found[f"{key}/query"] = sample.attention.query_R
                if sample.attention.rows is not None:
                    found |= {f"{key}/rows/{layer}": rows for layer, rows in rows_of(task, sample).items()}
    importance = None if isinstance(memory, list) else _opened(memory).importance
    if importance is not None:
        for name in ("sensitivity_NH", "forgettability_NH", "product_NH"):
            found[f"importance/{name}"] = getattr(importance, name)
    return found


def rows_of(task: MemoryTask, sample: ReplaySample) -> dict[int, Tensor]:
    """``{layer: [M, R, L]}`` what is kept of a sample's rows, zero elsewhere; or the factors' queries, or outputs."""
    found = {}
    for layer in task.heads:
        stored = sample.attention.of_layer(task.heads, layer)
        if isinstance(stored, StoredDense):
            found[layer] = stored.decode()
            continue
        if isinstance(stored, StoredOutputs):
            found[layer] = stored.decode()
            continue
        if isinstance(stored, StoredFactors):
            found[layer] = stored.q_MRD
            continue
        prob_MRK, key_MRK, _, _ = stored.decode()
        found[layer] = torch.zeros(*prob_MRK.shape[:2], len(sample.ids_L)).scatter_(-1, key_MRK, prob_MRK)
    return found


def _opened(memory: Path | ReplayMemory) -> ReplayMemory:
    return memory if isinstance(memory, ReplayMemory) else ReplayMemory.open(memory)
