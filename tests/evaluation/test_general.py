"""The real harness, offline, on local files: made ones, and real rows where they are at hand."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from generating import ROOT, random_model, stories_folder
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tinylm import config_for, constant_task, reverse_task, save_base, teach

from seekr_cl.cli.main import main
from seekr_cl.errors import ConfigError, DataError
from seekr_cl.evaluation import generate_answers
from seekr_cl.evaluation.general import BENCHMARKS, Benchmark, evaluate_general, listed, with_drift
from seekr_cl.evaluation.general_tasks import LOCAL
from seekr_cl.evaluation.harness import PromptLM, QueryAdapterLM
from seekr_cl.models.loading import load_model
from seekr_cl.training import learn


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    # The harness asks pip for its packages in each evaluation, which takes longer than all that is tested here.
    monkeypatch.setattr("torch.utils.collect_env.get_pip_packages", lambda *_: ("pip", ""))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def write(folder: Path, name: str, rows: list) -> None:
    (folder / name).mkdir()
    for split in ("train", "test"):
        (folder / name / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")


def test_answers_are_scored_by_the_harness(tmp_path):
    model, tokenizer = random_model("llama")
    rows = [{"prompt": f"{letter} =", "answer": "True"} for letter in "abcdef"]
    write(tmp_path, "boolq", rows)
    model.train()
    first = evaluate_general(model, tokenizer, 2, tmp_path, names=["boolq"])
    assert model.training
    right = first["tasks"]["boolq"]
    folder = tmp_path / "swapped"
    folder.mkdir()
    write(folder, "boolq", [row | {"answer": "False"} for row in rows])
    wrong = evaluate_general(model, tokenizer, 2, folder, names=["boolq"])["tasks"]["boolq"]
    # Each question is answered one way, so the two must make up 100.
    assert right["score"] + wrong["score"] == pytest.approx(100)
    assert (right["metric"], right["shots"], right["examples"]) == ("acc,none", 0, 6)
    assert first["harness"].startswith("lm-evaluation-harness 0.")
    assert first["mean"] == right["score"]


def test_shots_are_rows_of_the_training_split(tmp_path, monkeypatch):
    """As many as the benchmark has, each with its answer, before every question; the same for every model."""
    seen = {}

    def note(kind):
        own = getattr(HFLM, kind)

        def watched(self, requests, **more):
            seen[kind] = [request.args for request in requests]
            return own(self, requests, **more)

        return watched

    for kind in ("loglikelihood", "generate_until"):
        monkeypatch.setattr(HFLM, kind, note(kind))
    model, tokenizer = random_model("llama")
    letters = "abcdefghijkl"
    for name, answers in (("mmlu", "ABCD"), ("bbh", "xyz")):
        (tmp_path / name).mkdir()
        for split, rows in (("train", letters), ("test", letters[:3].upper())):
            content = [{"prompt": f"{a} =", "answer": answers[n % len(answers)]} for n, a in enumerate(rows)]
            (tmp_path / name / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    found = evaluate_general(model, tokenizer, 2, tmp_path, names=["mmlu", "bbh"])
    for name, kind, shots, answers in (("mmlu", "loglikelihood", 5, "ABCD"), ("bbh", "generate_until", 3, "xyz")):
        assert found["tasks"][name]["shots"] == shots
        contexts = {context for context, _ in seen[kind]}
        assert len(contexts) == 3
        for context in contexts:
            *given, question = context.split("\n\n")
            assert question in ("A =", "B =", "C =")
            assert len(set(given)) == shots
            assert set(given) <= {f"{a} = {answers[n % len(answers)]}" for n, a in enumerate(letters)}
    continuations = {continuation for _, continuation in seen["loglikelihood"]}
    assert continuations == {" A", " B", " C", " D"}


@pytest.mark.parametrize("name", ["l2p", "sapt"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_question_is_the_context_alone(base_folder, tmp_path, name):
    """What may follow chooses no adapter, and neither does padding; generated text stops where it is told."""
    settings = {
        "l2p": {"pool_size": 12, "prompt_length": 2, "top": 2},
        "sapt": {"rank": 2, "alpha": 32.0, "query_size": 6, "temperature": 2.0},
    }[name]
    tasks = [constant_task("yes", "yes", 4), reverse_task(count=8)]
    teach(base_folder, tmp_path, tasks, config_for({"name": name} | settings, tmp_path, learning_rate=0.05))
    model, tokenizer = load_model(str(tmp_path / "m2"), "float32")
    model.eval()
    lm = QueryAdapterLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=40)
    texts = [
        ("ab=", "fedcba"),
        ("uvw?", "no"),
        ("ab=", "x"),
        ("abcdef" * 7, "fe"),
        ("u?", "yes yes yes"),
        ("ab=f", "edcba"),
    ]
    requests = [(pair, *map(tokenizer.encode, pair)) for pair in texts]
    found = [value for value, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]
    alone, whole = [], []
    for _, context, continuation in requests:
        ids = (context + continuation)[-41:][:-1]
        question = torch.tensor([[1] * (len(ids) - len(continuation) + 1) + [0] * (len(continuation) - 1)])
        for values, asked in ((alone, question), (whole, torch.ones_like(question))):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), query_mask=asked).logits[0, -len(continuation) :]
            values.append(float(logits.log_softmax(-1).gather(1, torch.tensor(continuation)[:, None]).sum()))
    assert found == pytest.approx(alone, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(alone, whole)) > 1e-3, "what follows chose nothing"

    prompts = [tokenizer.encode(text) for text in ("ab=", "uvwxyz?")]
    width, new = max(map(len, prompts)), 12
    ids = torch.tensor([[0] * (width - len(one)) + one for one in prompts])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
    words = {"attention_mask": mask, "eos_token_id": None, "do_sample": False}
    full = lm._model_generate(ids, max_length=width + new, stop=["never"], **words)
    assert full.shape == (2, width + new)
    # Both have written what the later one writes sixth, wherever that is.
    written = [tokenizer.convert_ids_to_tokens(row) for row in full[:, width:].tolist()]
    # Letters that no special token has in it: the stop is looked for in the text.
    within = "".join(tokenizer.all_special_tokens)
    common = [letter for letter in written[0][:6] if letter in written[1][:6] and letter not in within]
    if common:
        short = lm._model_generate(ids, max_length=width + new, stop=[common[0]], **words)
        last = max(tokens.index(common[0]) for tokens in written)
        assert short.shape[1] == width + last + 1
    assert torch.equal(full[:, :width], ids)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_prompt_stands_right_before_each_text(base_folder, tmp_path):
    """A text's answer is the library's own, whatever longer text is beside it."""
    method = {"name": "progressive_prompts", "prompt_length": 4, "bottleneck": 0}
    config = config_for(method, tmp_path, learning_rate=0.5, num_train_epochs=2)
    teach(base_folder, tmp_path, [reverse_task(count=8)], config)
    model, tokenizer = load_model(str(tmp_path / "m1"), "float32")
    texts = ["ab=", "abcdef=", "fe=", "u?"]
    lm = PromptLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=4, max_length=40)
    requests = [
        Instance("generate_until", {}, (text, {"until": ["never"], "max_gen_toks": 6}), index)
        for index, text in enumerate(texts)
    ]
    own = generate_answers(model, tokenizer, [tokenizer.encode(text) for text in texts], 6, 1)
    assert any(own)
    assert lm.generate_until(requests, disable_tqdm=True) == own
    stop = next(text[1] for text in own if len(set(text)) > 1)
    for request in requests:
        request.arguments = (request.arguments[0], {"until": [stop], "max_gen_toks": 6})
    assert lm.generate_until(requests, disable_tqdm=True) == [text.split(stop)[0] for text in own]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_command_says_how_every_benchmark_has_drifted(tmp_path, capsys):
    """All six on real rows: a prompt pool on a real model, and that model as the base, itself and as it was scored."""
    folder = Path(os.environ.get("SEEKR_SHARED", ROOT / ".." / "shared")) / "data" / "general"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set SEEKR_SHARED to the folder with the real data")
    with pytest.raises(DataError, match=r"gsm8k cannot be evaluated .*256"):  # more than this model's whole context
        evaluate_general(*random_model("llama"), 2, folder, limit=1, names=["gsm8k"])
    base = stories_folder()
    method = {"name": "l2p", "pool_size": 6, "prompt_length": 4, "top": 3}
    learn(
        base,
        reverse_task(count=4),
        tmp_path / "memory",
        tmp_path / "m1",
        config_for(method, tmp_path, learning_rate=1.0),
    )
    words = ["evaluate", "--general", str(folder), "--limit", "1", "--batch-size", "4"]
    given = [*words, "--model", str(tmp_path / "m1")]
    assert main([*given, "--base", str(base), "--output", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "general.json").read_text("utf-8"))
    assert {name: task["shots"] for name, task in found["tasks"].items()} == {
        "mmlu": 5, "gsm8k": 8, "bbh": 3, "tydiqa": 1, "boolq": 0, "piqa": 0,
    }  # fmt: skip
    assert {name: one.shots for name, one in BENCHMARKS.items()} == {name: one.shots for name, one in LOCAL.items()}
    for name, task in found["tasks"].items():
        assert name in table
        assert task["examples"] == 1
        assert 0 <= task["score"] <= 100
        assert task["drift"] == task["score"] - task["base"]
    assert found["base_model"] == str(base)
    assert found["drift"] == pytest.approx(found["mean"] - found["base_mean"])
    # A former evaluation stands for a model; made in another way it does not.
    former = found | {"tasks": {n: t | {"score": t["base"]} for n, t in found["tasks"].items()}, "limit": 2}
    (tmp_path / "former").mkdir()
    (tmp_path / "former" / "general.json").write_text(json.dumps(former), encoding="utf-8")
    assert main([*given, "--base", str(tmp_path / "former"), "--output", str(tmp_path / "no")]) == 2
    assert "--base: evaluated with another 'limit' (2, now 1)" in capsys.readouterr().err
    assert not (tmp_path / "no" / "general.json").exists()


def test_the_precision_is_that_of_the_computation(base_folder, tmp_path, capsys):
    write(tmp_path, "boolq", [{"prompt": "a =", "answer": "True"}])
    words = ["evaluate", "--model", str(base_folder), "--general", str(tmp_path), "--general-tasks", "boolq"]
    for name, more in (("wide", []), ("half", ["evaluation.dtype=bfloat16", "--base", str(tmp_path / "wide")])):
        assert main([*words, "--output", str(tmp_path / name), *more]) == 0
    said = "general ability was evaluated with another dtype: float32 before, bfloat16 after"
    assert said in capsys.readouterr().out
    found = [json.loads((tmp_path / name / "general.json").read_text())["dtype"] for name in ("wide", "half")]
    assert found == ["float32", "bfloat16"]


RESULT = {
    "harness": "h 1", "data": None, "limit": None, "seed": 1, "mean": 50.0,
    "tasks": {"boolq": {"score": 50.0, "stderr": 1.0, "metric": "acc,none", "shots": 0, "examples": 9}},
}  # fmt: skip


def test_drift_is_the_change_since_the_base_model():
    base = RESULT | {"mean": 60.0, "tasks": {"boolq": RESULT["tasks"]["boolq"] | {"score": 60.0}}}
    found = with_drift(RESULT, base)
    assert (found["base_mean"], found["drift"]) == (60, -10)
    assert (found["tasks"]["boolq"]["base"], found["tasks"]["boolq"]["drift"]) == (60, -10)
    for other in (
        {"limit": 5},
        {"data": "x"},
        {"tasks": {}},
        {"tasks": {"boolq": RESULT["tasks"]["boolq"] | {"shots": 1}}},
    ):
        with pytest.raises(ConfigError, match="--base"):
            with_drift(RESULT, base | other)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"test\.json: not readable"),
        ([], "not empty"),
        ([{"prompt": "a"}], r"row 0: needs the texts"),
        ([{"prompt": "a", "answer": "maybe"}], "answer 'maybe' is none of False, True"),
    ],
)
def test_bad_local_data_is_named(tmp_path, content, said):
    write(tmp_path, "boolq", [{"prompt": "a", "answer": "True"}])
    path = tmp_path / "boolq" / "test.json"
    path.unlink() if content is None else path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=said):
        evaluate_general(*random_model("llama"), 2, tmp_path, names=["boolq"])


def test_without_the_harness(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'seekr-cl\[general\]'"):
        evaluate_general(*random_model("llama"), 2, tmp_path)


def test_any_task_of_the_harness_can_be_asked_for(tmp_path):
    """One from a YAML file, as its authors write them, beside the local benchmarks."""
    rows = [{"q": f"{letter} =", "gold": place % 2} for place, letter in enumerate("abcdef")]
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    config = {
        "task": "own_choice", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}, "cache_dir": str(tmp_path / "cache")},
        "doc_to_text": "{{q}}", "doc_to_target": "gold", "doc_to_choice": ["yes", "no"],
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(json.dumps(config))
    write(tmp_path, "boolq", [{"prompt": f"{letter} =", "answer": "True"} for letter in "abcdef"])
    model, tokenizer = random_model("llama")
    names = [str(tmp_path / "own.yaml"), "boolq"]
    found = evaluate_general(model, tokenizer, 2, tmp_path, names=names)
    own = found["tasks"][names[0]]
    assert (own["metric"], own["shots"], own["examples"]) == ("acc_norm,none", 0, 6)
    assert 0 <= own["score"] <= 100
    assert found["mean"] == pytest.approx((own["score"] + found["tasks"]["boolq"]["score"]) / 2)


def test_benchmarks_by_name():
    assert (listed("ifeval").task, listed("ifeval").metric) == ("ifeval", "prompt_level_strict_acc,none")
    assert (listed("hellaswag:3").shots, listed("hellaswag").shots) == (3, 10)
    assert listed("lambada_openai") == Benchmark("lambada_openai", None, None)
    assert listed("mmlu:0").task == BENCHMARKS["mmlu"].task
    for wrong in ("hellaswag:", "hellaswag:x", "a b", ""):
        with pytest.raises(ConfigError, match="--general-tasks"):
            listed(wrong)


def test_a_package_of_one_benchmark_is_named(tmp_path, monkeypatch):
    """As IFEval's langdetect is, which the harness itself does not need; that is no matter of the network."""
    write(tmp_path, "tydiqa", [{"prompt": "a =", "answer": "b"}])
    monkeypatch.setitem(sys.modules, "lm_eval.tasks.tydiqa.utils", None)
    with pytest.raises(
        DataError, match=r"tydiqa needs the package lm_eval\.tasks\.tydiqa\.utils; pip install"
    ) as caught:
        evaluate_general(*random_model("llama"), 2, tmp_path, names=["tydiqa"])
    assert "network" not in str(caught.value)


def test_a_list_that_cannot_be_evaluated_is_refused_before_a_model_is_loaded(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("group: x\n")
    (tmp_path / "local").mkdir()
    for words, said in (
        (["--general-tasks", "hellaswag:x"], "must be TASK or TASK:SHOTS"),
        (["--general-tasks", str(tmp_path / "bad.yaml")], "is no task of lm-evaluation-harness"),
        (["--general-tasks", str(tmp_path / "none.yaml")], "cannot be read"),
    ):
        assert main(["evaluate", "--model", "nowhere", "--output", str(tmp_path / "out"), *words]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match="ifeval fetches its data from the Hub"):
        evaluate_general(*random_model("llama"), 2, tmp_path / "local", names=["ifeval"])
