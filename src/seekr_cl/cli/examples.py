"""An example of every command, at the end of its help."""

import argparse
import re

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": (
        "seekr init seekr.yaml --model BASE --data tickets.jsonl --test tickets_test.jsonl",
        "seekr init      # asks",
    ),
    "validate": (
        "seekr validate seekr.yaml --output run",
        "seekr validate --model model-1 --task invoices.jsonl --memory memory --output model-2",
    ),
    "doctor": ("seekr doctor --model HuggingFaceTB/SmolLM2-135M-Instruct",),
    "learn": (
        "seekr learn --model BASE --task tickets.jsonl --memory memory --output model-1",
        "seekr learn --model model-1 --task invoices.jsonl --memory memory --output model-2 replay.ratio=0.02",
    ),
    "run": ("seekr run seekr.yaml --output run", "seekr run seekr.yaml --output run-lora peft=lora num_train_epochs=2"),
    "plan": ("seekr plan --model BASE --tasks 8 --examples 5000 --tokens 1024", "seekr plan seekr.yaml --model BASE"),
    "evaluate": ("seekr evaluate --model model-2 --task tickets_test.jsonl --metric rouge_l --output scores",),
    "score": ("seekr score answers.jsonl --metric rouge_l_trace --json",),
    "export": ("seekr export --merge adapter-2 model-2-merged",),
    "push": ("seekr push model-2 OWNER/NAME --private --dry-run",),
    "compare": ("seekr compare run-seqft run --output comparison",),
    "gate": (
        "seekr gate run --max-drop 2 --confidence 0.95",
        "seekr gate --before eval/in-use --after eval/new --max-drop 2 --task yahoo=5 --general 1 --junit gate.xml",
    ),
    "drift": ("seekr drift run --text wiki.txt",),
    "demo": ("seekr demo --quick",),
    "inspect": ("seekr inspect --model BASE --task tickets.jsonl -n 2",),
    "methods": ("seekr methods --json",),
    "benchmark list": ("seekr benchmark list",),
    "benchmark fetch": ("seekr benchmark fetch trace --from TRACE-Benchmark.zip --output trace",),
    "memory show": ("seekr memory show memory --samples --task tickets",),
    "memory log": ("seekr memory log memory",),
    "memory verify": ("seekr memory verify memory",),
    "memory rollback": ("seekr memory rollback memory --to tickets",),
    "memory forget": ("seekr memory forget memory --task tickets --everywhere run scores",),
    "memory gc": ("seekr memory gc memory --keep 3",),
    "memory export": ("seekr memory export memory memory.tar",),
    "memory import": ("seekr memory import memory memory.tar",),
    "completion": (
        "seekr completion bash > ~/.local/share/bash-completion/completions/seekr",
        "seekr completion zsh > ~/.zfunc/_seekr      # with fpath+=~/.zfunc before compinit in ~/.zshrc",
        "seekr completion fish > ~/.config/fish/completions/seekr.fish",
    ),
}
"""By command: lines to type; what follows a blank and ``#`` is said to the reader."""


class Help(argparse.HelpFormatter):
    """Help that leaves commands in one line, so that they can be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = [line if line.startswith("  ") else super(Help, self)._fill_text(line, width, indent)
                 for line in text.split("\n")]  # fmt: skip
        return "\n".join(parts)


def add_examples(parser: argparse.ArgumentParser, name: str = "") -> None:
    """Puts the examples of a command, and of those below it, at the end of their help."""
    parser.formatter_class = Help
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                add_examples(inner, f"{name} {word}".strip())
    shown = EXAMPLES.get(name)
    if shown:
        lines = [f"  {line.replace('%', '%%')}" for line in shown]
        before = re.sub(r"\s*\b[Ff]or example: .*", "", parser.epilog or "")
        before += "\n" if before else ""
        parser.epilog = "\n".join([f"{before}examples:" if len(lines) > 1 else f"{before}example:", *lines])
