"""The benchmarks that papers report on, by name: tasks, orders, metrics, lengths and epochs as published.

A protocol is what one paper or its code did with the tasks: the metric of each, how the answer is found in what was
generated, how long it may be, how long prompts are, and the epochs. What is not among the numbers here, such as the
learning rate, belongs to the method and not to the benchmark.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Epochs = Mapping[str, float] | float
"""Of each task, or of all alike."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How one paper uses a benchmark.

    Attributes:
        source: the paper or code it is read from.
        metrics: metric of each task; those not named have ``metric``.
        metric: metric of every other task.
        epochs: ``{order: epochs}``, where ``"*"`` stands for every order that is not named.
        max_new_tokens: longest answer that is generated; decoding is greedy and stops at the end-of-text token.
        settings: lengths and truncation, as keys of a stream.
        extract: how the answer is found in what was generated, a key of ``EXTRACTIONS``.
        fixed: what this library always does otherwise: what, the paper's way, ours.
    """

    source: str
    metric: str
    epochs: Mapping[str, Epochs]
    max_new_tokens: int
    settings: Mapping[str, Any]
    metrics: Mapping[str, str] = field(default_factory=dict)
    extract: str = "whole"
    fixed: tuple[tuple[str, str, str], ...] = ()

    def metric_of(self, task: str) -> str:
        """The task's metric."""
        return self.metrics.get(task, self.metric)

    def epochs_of(self, task: str, order: str) -> float:
        """How often a task is passed over in an order."""
        epochs = self.epochs.get(order, self.epochs.get("*", 1.0))
        return float(epochs[task] if isinstance(epochs, Mapping) else epochs)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A named benchmark.

    Attributes:
        name: what streams and commands call it.
        title: of the paper that made it.
        url: where that paper is.
        orders: task sequences by name; the first is the default.
        protocols: by the name of the paper; the first is the default.
        variants: differently sized or worded editions of the data; the last is the default, empty if there is one only.
        train_rows: training rows of each task by variant, where the edition's name promises them.
        aliases: other folder names of a task.
        stand_ins: tasks that may take another's place, only where a stream asks for it.
    """

    name: str
    title: str
    url: str
    orders: Mapping[str, tuple[str, ...]]
    protocols: Mapping[str, Protocol]
    variants: tuple[str, ...] = ()
    train_rows: Mapping[str, int] = field(default_factory=dict)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task of any order, in the order of first appearance."""
        return tuple(dict.fromkeys(task for order in self.orders.values() for task in order))

    @property
    def default_variant(self) -> str | None:
        """The edition that a stream means when it names none."""
        return self.variants[-1] if self.variants else None


_SEEKR_LENGTHS = {
    "max_length": 1536, "max_prompt_length": 1024, "max_answer_length": 512, "prompt_boundary": "merged",
    "long_completions": "refuse",
}  # fmt: skip
_OLORA_LENGTHS = {
    "max_length": 562, "max_prompt_length": 512, "max_answer_length": 50, "prompt_boundary": "separate",
    "long_completions": "refuse",
}  # fmt: skip
_SAPT_LENGTHS = {
    "max_length": 1074, "max_prompt_length": 1024, "max_answer_length": 50, "prompt_boundary": "separate",
    "long_completions": "skip",
}  # fmt: skip
_SAPT_FIXED = (
    ("best epoch", "chosen on the dev split", "the last epoch"),
    (
        "truncation",
        "long prompts lose their right, with 'Output:', and then any answer counts as empty",
        "long prompts lose their left",
    ),
    ("BOS", "none", "one, where the tokenizer has it"),
    ("end of the prompt", "'Output: '", "'Output:'"),
    ("answer", "what follows the last 'Output:' of prompt and output", "the whole output"),
    ("decoded text", "clean_up_tokenization_spaces", "as the tokenizer's own settings have it"),
    ("forward transfer", "mean of the diagonal less the scores of tasks trained alone", "scores.json: conventions"),
)
"""What SAPT's loader, collator and score.py do and this library does not."""
_TRACE1 = ("C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten")
_TRACE2 = ("NumGLUE-cm", "NumGLUE-ds", "FOMC", "20Minuten", "C-STANCE", "Py150", "MeetingBank", "ScienceQA")
_TRACE_METRICS = {
    "ScienceQA": "first_character",
    "MeetingBank": "rouge_l_trace",
    "Py150": "edit_similarity_py150",
    "20Minuten": "sari_trace",
}

TRACE = Benchmark(
    name="trace",
    title="TRACE: A Comprehensive Benchmark for Continual Learning in Large Language Models (Wang et al., 2023)",
    url="https://arxiv.org/abs/2310.06762",
    orders={"1": _TRACE1, "2": _TRACE2},
    protocols={
        "seekr": Protocol(
            "SEEKR's scripts and re_eval (arXiv 2411.06171)",
            "exact_match",
            {
                "1": dict(zip(_TRACE1, (5, 5, 5, 5, 5, 5, 10, 5))),
                "2": dict(zip(_TRACE2, (10, 10, 10, 5, 5, 5, 5, 5))),
            },
            512,
            _SEEKR_LENGTHS,
            _TRACE_METRICS | {"C-STANCE": "first_character", "FOMC": "first_character"},
            "trace",
            fixed=(
                (
                    "empty answers",
                    "re_eval scores a space: some points in Py150, where references are short and hold spaces",
                    "0, but in 20Minuten what a space scores",
                ),
            ),
        ),
        "trace": Protocol(
            "TRACE's scripts (arXiv 2310.06762)",
            "exact_match",
            {"*": dict(zip(_TRACE1, (5, 3, 7, 5, 3, 5, 5, 7)))},
            512,
            _SEEKR_LENGTHS,
            _TRACE_METRICS,
            fixed=(
                ("decoding", "sampled at temperature 0.1", "greedy"),
                ("spaces around an answer", "count where it must equal the reference", "left out"),
                ("MeetingBank, texts without a sentence such as '...'", "stop the evaluation", "score 0"),
                ("ScienceQA", "also BLEU and ROUGE of the explanation", "accuracy"),
            ),
        ),
    },
    variants=("500", "1000", "reasoning", "5000"),
    train_rows={"500": 500, "1000": 1000, "5000": 5000},
)

_SUPERNI_LONG = (
    *("task1572", "task363", "task1290", "task181", "task002", "task1510", "task639", "task1729"),
    *("task073", "task1590", "task748", "task511", "task591", "task1687", "task875"),
)
_SUPERNI_LONG2 = (
    *("task748", "task073", "task1590", "task639", "task1572", "task1687", "task591", "task363"),
    *("task1510", "task1729", "task181", "task511", "task002", "task1290", "task875"),
)


def _seekr_order(tasks: tuple[str, ...]) -> tuple[str, ...]:
    """SEEKR's orders are SAPT's without three dialogue tasks, and with another wording of sentiment140."""
    left_out = ("task639", "task1729", "task1590")
    return tuple("task195" if task == "task1687" else task for task in tasks if task not in left_out)


SUPERNI = Benchmark(
    name="superni",
    title="Super-NaturalInstructions (Wang et al., EMNLP 2022), in the sequences of SAPT (ACL 2024) and SEEKR",
    url="https://arxiv.org/abs/2204.07705",
    orders={
        "3": _seekr_order(_SUPERNI_LONG),
        "4": _seekr_order(_SUPERNI_LONG2),
        "sapt1": _SUPERNI_LONG,
        "sapt2": _SUPERNI_LONG2,
    },
    protocols={
        "seekr": Protocol(
            "SEEKR's scripts and re_eval (arXiv 2411.06171)",
            "rouge_l_trace",
            {"*": 10},
            512,
            _SEEKR_LENGTHS,
            dict.fromkeys(("task363", "task875", "task195", "task1687"), "exact_match"),
            fixed=(("several references", "one, which SEEKR's files give", "the best one counts"),),
        ),
        "sapt": Protocol(
            "SAPT's gen_script_superni_llama (arXiv 2401.08295)",
            "rouge_l_sapt",
            {"*": 50},
            50,
            _SAPT_LENGTHS,
            fixed=(
                *_SAPT_FIXED,
                ("answers above 50 tokens", "cut to 50 tokens when trained on", "left out (long_completions: skip)"),
                (
                    "several references",
                    "one, drawn at random, is learnt or scored",
                    "the first is learnt, the best one counts",
                ),
            ),
        ),
    },
    stand_ins={"task195": "task1687"},
)

_OLORA = Protocol(
    "O-LoRA's scripts (arXiv 2310.14152)",
    "exact_match_normalised",
    {"*": 1},
    50,
    _OLORA_LENGTHS,
    fixed=(
        (
            "truncation",
            "long prompts lose their right, with 'Answer:', and then any answer counts as empty",
            "long prompts lose their left",
        ),
        ("BOS", "two before a prompt of LLaMA's", "one"),
        ("answer", "what follows the last 'Answer:' of prompt and output", "the whole output"),
    ),
)
_SAPT_LONG = Protocol(
    "SAPT's gen_script_long_llama (arXiv 2401.08295)",
    "exact_match_normalised",
    {"*": 20},
    50,
    _SAPT_LENGTHS,
    fixed=(
        *_SAPT_FIXED,
        ("prompts", "SAPT's, without the names of task and data set", "those of the archive that was fetched"),
        ("epochs", "a number of steps for cb, copa, boolq, imdb, dbpedia and multirc", "20 epochs for every task"),
    ),
)
_OLORA_ALIASES = {
    "SST-2": ("sst2", "SST2"), "BoolQA": ("boolq", "BoolQ"), "IMDB": ("imdb",), "MNLI": ("mnli",), "CB": ("cb",),
    "COPA": ("copa",), "QQP": ("qqp",), "RTE": ("rte",), "WiC": ("wic",), "MultiRC": ("multirc",),
}  # fmt: skip

STANDARD5 = Benchmark(
    name="standard5",
    title="Character-level text classification sets (Zhang et al., 2015) as O-LoRA orders them (Wang et al., 2023)",
    url="https://arxiv.org/abs/2310.14152",
    orders={
        "1": ("dbpedia", "amazon", "yahoo", "agnews"),
        "2": ("dbpedia", "amazon", "agnews", "yahoo"),
        "3": ("yahoo", "amazon", "agnews", "dbpedia"),
        "five": ("dbpedia", "amazon", "yahoo", "agnews", "yelp"),
    },
    protocols={"olora": _OLORA},
)

LONG15 = Benchmark(
    name="long15",
    title="Progressive Prompts' fifteen tasks (Razdaibiedina et al., ICLR 2023) as O-LoRA orders them",
    url="https://arxiv.org/abs/2301.12314",
    orders={
        "4": (
            *("MNLI", "CB", "WiC", "COPA", "QQP", "BoolQA", "RTE", "IMDB"),
            *("yelp", "amazon", "SST-2", "dbpedia", "agnews", "MultiRC", "yahoo"),
        ),
        "5": (
            *("MultiRC", "BoolQA", "WiC", "MNLI", "CB", "COPA", "QQP", "RTE"),
            *("IMDB", "SST-2", "dbpedia", "agnews", "yelp", "amazon", "yahoo"),
        ),
        "6": (
            *("yelp", "amazon", "MNLI", "CB", "COPA", "QQP", "RTE", "IMDB"),
            *("SST-2", "dbpedia", "agnews", "yahoo", "MultiRC", "BoolQA", "WiC"),
        ),
    },
    protocols={"olora": _OLORA, "sapt": _SAPT_LONG},
    aliases=_OLORA_ALIASES,
)

BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in (TRACE, SUPERNI, STANDARD5, LONG15)}
