"""A task scored from prompt to file."""

import json

import pytest

from seekr_cl.errors import ConfigError, DataError
from seekr_cl.evaluation import evaluate_task, generate_answers, write_predictions
from seekr_cl.tasks import Encoder, Example, Task
from seekr_cl.tasks.extraction import EXTRACTIONS

QUESTIONS = ["one", "two 中", "a longer question?", "b"]


@pytest.fixture
def model_tokenizer(make_model):
    return make_model("llama")


@pytest.fixture
def answers(model_tokenizer):
    model, tokenizer = model_tokenizer
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in QUESTIONS]
    return generate_answers(model, tokenizer, prompts, 5, 1)


def task_of(answers, **settings) -> Task:
    """Right, wrong, right by its second reference, wrong."""
    test = [
        Example(QUESTIONS[0], answers[0]),
        Example(QUESTIONS[1], answers[1] + "x"),
        Example(QUESTIONS[2], "other", references=("other", answers[2])),
        Example(QUESTIONS[3], answers[3], references=("what counts are the references",)),
    ]
    return Task("real", test, test=test, max_new_tokens=5, **settings)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_and_predictions(model_tokenizer, answers, batch_size):
    model, tokenizer = model_tokenizer
    done: list[int] = []
    score = evaluate_task(model, tokenizer, task_of(answers), Encoder(tokenizer, 64), batch_size, done.append)
    assert (score.task, score.metric, score.count, score.score) == ("real", "exact_match", 4, 50.0)
    assert sum(done) == 4
    assert [p["score"] for p in score.predictions] == [100, 0, 100, 0]
    assert [p["prediction"] for p in score.predictions] == answers
    assert [p["prompt"] for p in score.predictions] == QUESTIONS
    assert [p["references"] for p in score.predictions] == [
        [answers[0]], [answers[1] + "x"], ["other", answers[2]], ["what counts are the references"],
    ]  # fmt: skip


def test_the_metric_sees_what_is_extracted(model_tokenizer, answers, monkeypatch):
    model, tokenizer = model_tokenizer
    monkeypatch.setitem(EXTRACTIONS, "two", lambda text: text[:2])
    test = [Example(QUESTIONS[0], answers[0][:2]), Example(QUESTIONS[1], answers[1])]
    task = Task("t", test, test=test, max_new_tokens=5, extract="two")
    score = evaluate_task(model, tokenizer, task, Encoder(tokenizer, 64), 2)
    assert [len(answer) > 2 for answer in answers[:2]] == [True, True]
    assert [p["score"] for p in score.predictions] == [100, 0]
    assert [p["prediction"] for p in score.predictions] == answers[:2]
    assert [p["scored"] for p in score.predictions] == [answer[:2] for answer in answers[:2]]


def test_the_metric_sees_the_prompt(model_tokenizer, answers):
    model, tokenizer = model_tokenizer
    examples = [Example("a b", answers[0]), Example("", answers[0])]
    task = Task("t", examples, test=examples, metric="sari", max_new_tokens=5)
    score = evaluate_task(model, tokenizer, task, Encoder(tokenizer, 64), 2)
    from seekr_cl.evaluation import get_metric

    texts = [p["prediction"] for p in score.predictions]
    assert [p["score"] for p in score.predictions] == get_metric("sari").score(texts, [[answers[0]]] * 2, ["a b", ""])


def test_a_long_prompt_is_cut_to_leave_room_for_the_answer(model_tokenizer):
    model, tokenizer = model_tokenizer
    seen: list[int] = []
    watch = model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["position_ids"].max().item()), with_kwargs=True
    )
    examples = [Example("ab" * 200, "c"), Example("b", "c")]
    encoder = Encoder(tokenizer, 96)
    score = evaluate_task(model, tokenizer, Task("t", examples, test=examples, max_new_tokens=6), encoder, 2)
    watch.remove()
    assert encoder.cut_count == 1
    assert max(seen) < 96
    assert score.predictions[0]["prompt"] == "ab" * 200  # what is written down is the whole of it


def test_a_task_that_cannot_be_scored(model_tokenizer):
    model, tokenizer = model_tokenizer
    example = Example("a", "b")
    with pytest.raises(DataError, match="'t' has no test examples"):
        evaluate_task(model, tokenizer, Task("t", [example]), Encoder(tokenizer, 64), 2)
    with pytest.raises(ConfigError, match="did you mean 'rouge_l'"):
        evaluate_task(model, tokenizer, Task("t", [], test=[example], metric="rouge"), Encoder(tokenizer, 64), 2)


def test_the_predictions_file(model_tokenizer, tmp_path):
    model, tokenizer = model_tokenizer
    examples = [Example("中文\nline two\u2028and three", 'say "x"'), Example("b", "c")]
    name = "../odd: 名/[red]"
    score = evaluate_task(model, tokenizer, Task(name, [], test=examples, max_new_tokens=3), Encoder(tokenizer, 64), 2)
    path = write_predictions(tmp_path / "deep" / "er", score)
    assert path.parent == tmp_path / "deep" / "er"
    assert path.name.endswith(".jsonl")
    assert list(path.parent.iterdir()) == [path]
    text = path.read_text(encoding="utf-8")
    assert "中文" in text  # readable, not escaped
    assert [json.loads(line) for line in text.split("\n")[:-1]] == score.predictions
    again = write_predictions(tmp_path / "deep" / "er", score)
    assert again == path
    assert path.read_text(encoding="utf-8") == text
