"""``--json``: what a command prints is one JSON document and nothing else; ``--quiet``: nothing at all."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tinylm import constant_task, reverse_task

from seekr_cl.cli.main import build_parser, main
from seekr_cl.system.files import write_json

TABLES = [
    "learn", "run", "plan", "evaluate", "score", "compare", "demo", "inspect", "methods", "watch", "gate",
    "memory show", "memory log", "benchmark list", "benchmark fetch",
]  # fmt: skip
"""Commands that print a table."""
WORDS = ["use_cpu=true", "learning_rate=1e-3", "num_train_epochs=1", "replay.ratio=0.25"]


def parsers(parser: argparse.ArgumentParser, above: str = "") -> dict[str, argparse.ArgumentParser]:
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                found |= {f"{above}{name}": inner} | parsers(inner, f"{above}{name} ")
    return found


def test_every_command_with_a_table_has_json() -> None:
    have = {name for name, one in parsers(build_parser()).items() if "--json" in one.format_help()}
    assert set(TABLES) <= have


@pytest.fixture(scope="module")
def world(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    tasks = [reverse_task(), constant_task("no", "no")]
    for task in tasks:
        for split, examples in (("train", task.train), ("test", task.test)):
            rows = [{"prompt": one.prompt, "completion": one.completion} for one in examples]
            write_json(folder / task.name / f"{split}.json", rows)
    entries = [{"name": one.name, "data": one.name, "max_new_tokens": 8} for one in tasks]
    settings = {"model": str(base), "method": "replay", "tasks": entries, "per_device_train_batch_size": 4}
    (folder / "stream.yaml").write_text(yaml.safe_dump(settings))
    return folder


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_run_evaluate_and_memory(world: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = asked(capsys, "run", str(world / "stream.yaml"), "--output", str(world / "run"), "--quiet", *WORDS)
    assert said["matrix"] == json.loads((world / "run/scores.json").read_text())["matrix"]
    assert said["verdict"]["sentence"]
    memory = str(world / "run/memory")
    shown = asked(capsys, "memory", "show", memory)
    assert [(one["task"], one["samples"], one["of"]) for one in shown["tasks"]] == [("reverse", 3, 12), ("no", 3, 12)]
    samples = asked(capsys, "memory", "show", memory, "--samples")
    assert len(samples) == 6
    assert samples[-1]["completion"] == "no"
    log = asked(capsys, "memory", "log", memory)
    assert [(one["generation"], one["current"], one["learned"]) for one in log] == [
        ("0001", False, ["reverse"]), ("0002", True, ["no"])
    ]  # fmt: skip
    words = ["--model", str(world / "run/models/02-no"), "--task", str(world / "no"), "--max-new-tokens", "8"]
    scored = asked(capsys, "evaluate", *words, "--output", str(world / "scores"))
    assert scored["tasks"]["no"]["score"] == said["matrix"][-1]["scores"][1]


def test_learn(world: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(base), "--task", str(world / "no"), "--memory", str(world / "memory"), *WORDS]
    said = asked(capsys, "learn", *words, "--output", str(world / "m1"))
    assert (said["task"], said["generation"], said["samples"]) == ("no", 1, 3)
    assert said["steps"] == 2
    words[3] = str(world / "reverse")
    model = ["--model", str(world / "m1"), *words[2:]]
    capsys.readouterr()
    assert main(["learn", *model, "--output", str(world / "m2"), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step" not in captured.err


def test_errors_stay_errors(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "show", str(world / "nowhere"), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
