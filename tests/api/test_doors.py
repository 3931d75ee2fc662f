"""What a user of Hugging Face's libraries types first."""

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from tinylm import constant_task
from transformers import AutoModelForCausalLM, AutoTokenizer
from zygote import run_seekr

import seekr_cl
from seekr_cl import ReplayConfig, ReplayMemory, SeekrConfig, SeekrError, Task, evaluate, learn
from seekr_cl.system.removal import UNFINISHED_FILE

ROWS = [{"prompt": f"no{number}=", "completion": "yes"} for number in range(8)]


def config(folder: Path, **more: object) -> SeekrConfig:
    defaults = {"num_train_epochs": 1, "max_length": 32, "use_cpu": True, "progress": "none", "method": "replay"}
    return SeekrConfig(output_dir=str(folder / "trainer"), replay=ReplayConfig(ratio=0.25), **(defaults | more))


def test_the_public_names_are_what_dir_shows():
    assert dir(seekr_cl) == sorted(seekr_cl.__all__)
    for name in seekr_cl.__all__:
        assert getattr(seekr_cl, name) is not None
    assert {"Example", "Method", "register_method", "evaluate", "learn", "ReplayConfig"} <= set(dir(seekr_cl))
    stub = Path(seekr_cl.__file__).with_suffix(".pyi").read_text()
    assert set(re.findall(r" as (\w+)", stub)) == set(dir(seekr_cl)), "what editors see"
    assert "SeekrTrainer" not in dir(seekr_cl)  # it is no Trainer that takes model, args and train_dataset
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        seekr_cl.nonsense  # noqa: B018


@pytest.mark.parametrize("kind", ["rows", "dataset", "task", "file"])
def test_learn_takes_a_model_and_rows_in_hand(base: Path, tmp_path: Path, kind: str) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tasks = {
        "rows": ROWS,
        "dataset": Dataset.from_list(ROWS),
        "task": Task.load(Dataset.from_list(ROWS), name="a"),
        "file": tmp_path / "rows.jsonl",
    }
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    memory, output = str(tmp_path / "memory"), str(tmp_path / "output")
    learned = learn(model, tasks[kind], memory, output, config(tmp_path), processing_class=tokenizer)
    assert learned.model is model  # trained in place, as a Trainer does
    assert any((weight != before[name]).any() for name, weight in model.named_parameters())
    assert len(ReplayMemory.open(memory).samples) == 2
    # The next task goes on with the object, or with the folder.
    learn(
        model, constant_task("other", "no", 4), memory, tmp_path / "next", config(tmp_path), processing_class=tokenizer
    )
    assert [task.name for task in ReplayMemory.open(memory).tasks][1:] == ["other"]


def test_a_path_and_an_object_give_the_same_model(base: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    learn(model, ROWS, tmp_path / "m1", tmp_path / "o1", config(tmp_path), processing_class=tokenizer)
    learn(str(base), ROWS, tmp_path / "m2", tmp_path / "o2", config(tmp_path))
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("o1", "o2"))
    assert first == second


def test_an_adapter_on_a_model_in_hand(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    peft = LoraConfig(r=4, target_modules=["q_proj", "k_proj"], task_type="CAUSAL_LM")
    settings = config(tmp_path, peft=peft, method="derpp")
    assert settings.peft == {"peft_type": "LORA", "r": 4, "target_modules": ["k_proj", "q_proj"]}
    tokenizer = AutoTokenizer.from_pretrained(base)
    learn(model, ROWS, tmp_path / "memory", tmp_path / "output", settings, processing_class=tokenizer)
    written = json.loads((tmp_path / "output" / "adapter_config.json").read_text())
    assert (written["r"], sorted(written["target_modules"])) == (4, ["k_proj", "q_proj"])


def with_a_test() -> Task:
    return Task.load(DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:3])}), name="a")


def test_evaluating_on_removes_what_a_killed_process_left(base: Path, tmp_path: Path) -> None:
    evaluate(base, with_a_test(), tmp_path / "scores")
    left = tmp_path / "scores" / f".x.12345678{UNFINISHED_FILE}"
    left.write_text("half")
    evaluate(base, with_a_test(), tmp_path / "scores", resume=True)
    assert not left.exists()


@pytest.mark.parametrize("kind", ["folder", "object"])
def test_evaluate_gives_scores_by_task(base: Path, tmp_path: Path, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    task = with_a_test()
    model = base if kind == "folder" else AutoModelForCausalLM.from_pretrained(base)
    result = evaluate(model, [task], processing_class=tokenizer if kind == "object" else None)
    assert list(result.scores) == ["a"]
    assert 0 <= result.scores["a"] <= 100
    low, high = result.intervals["a"]
    assert low <= result.scores["a"] <= high
    written = evaluate(model, task, tmp_path / "scores", processing_class=tokenizer)
    assert written.scores == result.scores
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["tasks"]["a"]["score"] == result.scores["a"]


METHOD = '''
"""A method of a user's own."""
from seekr_cl import LossTerm, Paper, register_method
from seekr_cl.methods.replay import Replay


@register_method
class Half(Replay):
    """Half the task's loss."""

    name = "half"
    paper = Paper("None", "Nobody, 2026", "https://example.org")

    def new_task_loss(self, model, batch):
        """The task's loss, halved."""
        terms = super().new_task_loss(model, batch)
        return {"task": LossTerm(0.5 * terms["task"].value, count=terms["task"].count)}
'''


def test_a_method_from_a_users_own_file(base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "c.yaml").write_text("method: mine:Half\nnum_train_epochs: 1\nuse_cpu: true\nprogress: none\n")
    words = ["learn", "--model", base, "--task", rows, "--memory", "memory", "--output", "out", "--config", "c.yaml"]
    done = run_seekr(words, tmp_path)
    assert done.code == 0, done.err
    assert "half" in (tmp_path / "memory" / "generations" / "0001.json").read_text()


REFUSED = {
    "a model that is none": lambda base, tmp: learn(5, ROWS, tmp / "m", tmp / "o", config(tmp)),
    "rows that are none": lambda base, tmp: learn(base, ["yes"], tmp / "m", tmp / "o", config(tmp)),
    "no rows": lambda base, tmp: learn(base, [], tmp / "m", tmp / "o", config(tmp)),
    "a task that is none": lambda base, tmp: learn(base, 5, tmp / "m", tmp / "o", config(tmp)),
    "no config": lambda base, tmp: learn(base, ROWS, tmp / "m", tmp / "o", {"method": "replay"}),
    "a tokenizer that is none": lambda base, tmp: learn(
        AutoModelForCausalLM.from_pretrained(base), ROWS, tmp / "m", tmp / "o", config(tmp), processing_class=base
    ),
    "replay that is none": lambda base, tmp: SeekrConfig(output_dir=str(tmp), replay=5),
    "an unknown key": lambda base, tmp: SeekrConfig(output_dir=str(tmp), replay={"ration": 0.1}),
    "a value out of range": lambda base, tmp: ReplayConfig(ratio=2),
    "peft that is none": lambda base, tmp: SeekrConfig(output_dir=str(tmp), peft=5),
    "another kind of task": lambda base, tmp: SeekrConfig(output_dir=str(tmp), peft=LoraConfig(task_type="SEQ_CLS")),
    "a class that is no method": lambda base, tmp: seekr_cl.register_method(int),
    "no such method": lambda base, tmp: SeekrConfig(output_dir=str(tmp), method="json:loads"),
    "a length of nothing": lambda base, tmp: evaluate(base, with_a_test(), max_length=0),
    "a batch of half a prompt": lambda base, tmp: evaluate(base, with_a_test(), batch_size=0.5),
    "tasks without a test split": lambda base, tmp: evaluate(base, [Task.load(ROWS, name="a")]),
    "a changed config": lambda base, tmp: setattr(config(tmp), "replay", {"ratio": 0.9}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_line(base: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SeekrError) as caught:
        REFUSED[name](base, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()
