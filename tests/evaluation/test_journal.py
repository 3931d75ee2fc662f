"""Answers written down as they come: killed, cut off, damaged, shared by processes."""

import json
from pathlib import Path

import pytest
from generating import random_model
from zygote import run

from seekr_cl.errors import ConfigError, DataError, OutputError
from seekr_cl.evaluation import Place, TransformersEngine, answer_task, evaluate_task, score_task, write_predictions
from seekr_cl.evaluation.journal import shard
from seekr_cl.evaluation.prediction_files import read_rows
from seekr_cl.runs.traces import _rows
from seekr_cl.tasks import Encoder, Example, Task

TASK = Task("t [x]*", [], test=[Example("ab" * (n % 7) + str(n), "c") for n in range(14)], max_new_tokens=5)


def engine(batch_size: int = 3):
    model, tokenizer = random_model("llama")
    return TransformersEngine(model, tokenizer, batch_size), Encoder(tokenizer, 64)


def share(folder: str, rank: int) -> None:
    """What one of two processes does."""
    one, encoder = engine()
    answer_task(one, TASK, encoder, None, Place(Path(folder), "m", rank, 2))


@pytest.fixture(scope="module")
def whole() -> list[str]:
    one, encoder = engine()
    return answer_task(one, TASK, encoder)


def journals(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.answers-*"))


def stop(after: int):
    done: list[int] = []

    def count(number: int) -> None:
        done.append(number)
        if len(done) == after:
            raise KeyboardInterrupt

    return count


@pytest.mark.parametrize("cut", [b"", b'{"index": 3, "ans', b"\0" * 40 + b"\n", b'{"index": "3", "answer": "x"}\n'])
def test_it_goes_on_where_it_was(tmp_path, whole, cut):
    one, encoder = engine()
    with pytest.raises(KeyboardInterrupt):
        answer_task(one, TASK, encoder, stop(2), Place(tmp_path, "m"))
    (path,) = journals(tmp_path)
    assert len(path.read_bytes().splitlines()) == 1 + 6
    path.write_bytes(path.read_bytes() + cut)
    done: list[int] = []
    other, encoder = engine(batch_size=4)  # another batch size gives the same answers
    score = score_task(other, TASK, encoder, done.append, Place(tmp_path, "m"))
    assert done == [6, 4, 4]
    assert [row["prediction"] for row in score.predictions] == whole
    write_predictions(tmp_path, score)
    assert journals(tmp_path) == []


def test_an_answer_that_lacks_its_newline_alone_counts(tmp_path, whole):
    one, encoder = engine()
    with pytest.raises(KeyboardInterrupt):
        answer_task(one, TASK, encoder, stop(2), Place(tmp_path, "m"))
    (path,) = journals(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KeyboardInterrupt):
        answer_task(one, TASK, encoder, stop(2), Place(tmp_path, "m"))  # what is there, and one batch more
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["index"] for row in rows[1:]}) == len(rows) - 1 == 6 + 3
    assert answer_task(one, TASK, encoder, None, Place(tmp_path, "m")) == whole


def test_predictions_are_read_to_their_last_line(tmp_path, whole):
    """A line without its newline is one; of a torn one nothing is known, and then the rest is no evaluation."""
    one, encoder = engine()
    score = score_task(one, TASK, encoder, None, Place(tmp_path, "m"))
    path = write_predictions(tmp_path, score)
    content = path.read_bytes()
    for cut, rows in ((0, 14), (1, 14), (2, 13), (9, 13)):
        path.write_bytes(content[: len(content) - cut])
        assert len(read_rows(path)) == rows
        (tmp_path / "a.jsonl").write_bytes(path.read_bytes())
        assert len(_rows(tmp_path / "a.jsonl")) == rows
    path.write_bytes(content[:40] + content[60:])
    with pytest.raises(DataError, match="no predictions"):
        read_rows(path)
    with pytest.raises(OutputError, match="line 1 is damaged"):
        _rows(path)


def test_answers_to_something_else_are_not_gone_on_with(tmp_path, whole):
    one, encoder = engine()
    with pytest.raises(KeyboardInterrupt):
        answer_task(one, TASK, encoder, stop(1), Place(tmp_path, "another model"))
    done: list[int] = []
    assert answer_task(one, TASK, encoder, done.append, Place(tmp_path, "m")) == whole
    assert done == [3, 3, 3, 3, 2]


def test_kill_9_in_the_middle_of_a_task(tmp_path, whole):
    killed = run("test_journal:share", str(tmp_path), 0, environment={"SEEKR_FAULT": "evaluation.answered:2"})
    assert killed.code == -9, killed.err
    one, encoder = engine()
    assert len(journals(tmp_path)[0].read_bytes().splitlines()) == 1 + 6
    # One process finishes what two had begun.
    assert answer_task(one, TASK, encoder, None, Place(tmp_path, "m")) == whole


def test_processes_share_the_prompts(tmp_path, whole):
    one, encoder = engine()
    with pytest.raises(DataError, match="7 of 14 answers"):
        score_task(one, TASK, encoder, None, Place(tmp_path, "m", 0, 2))
    other = run("test_journal:share", str(tmp_path), 1)
    assert other.code == 0, other.err
    answered = [json.loads(line)["index"] for path in journals(tmp_path) for line in path.open().readlines()[1:]]
    assert sorted(answered) == list(range(14))  # each prompt by one process only
    score = score_task(one, TASK, encoder, None, Place(tmp_path, "m", 0, 2))
    assert [row["prediction"] for row in score.predictions] == whole
    assert score.score == evaluate_task(one.model, one.tokenizer, TASK, encoder, 1).score


def test_shards_are_of_equal_work():
    lengths = [5, 1, 9, 9, 2, 7, 3]
    shares = [shard(lengths, rank, 3) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(7))
    assert shares == [[2, 0, 1], [3, 6], [5, 4]]
    with pytest.raises(ConfigError, match="rank 3 of 3"):
        shard(lengths, 3, 3)
