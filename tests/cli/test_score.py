"""``seekr score``: answers from anywhere, scored without a model."""

import json
import subprocess
import sys

import pytest
from cli_world import write
from paper_scores import BY_PACKAGE, NOISE, hugging_face_sari, noisy, rows_of

from seekr_cl.evaluation import METRICS, get_metric

ROWS = [
    {"prediction": "the the the plan", "reference": "the plan", "prompt": "Q"},
    {"prediction": " yes\n", "references": ["no", "yes"], "prompt": "Q"},
    {"prediction": "", "reference": "something", "prompt": "Q"},
    {"prediction": "", "reference": "", "prompt": "Q"},
]


def lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def scored(seekr, file, metric, *more):
    done = seekr("score", file, "--metric", metric, "--json", *more)
    assert (done.code, done.err) == (0, ""), done.err
    return json.loads(done.out)


@pytest.mark.parametrize("metric", METRICS)
def test_a_task_has_the_score_that_the_library_gives_it(metric, seekr, tmp_path):
    file = write(tmp_path / "p.jsonl", lines(ROWS))
    one = get_metric(metric)
    texts = [row["prediction"] for row in ROWS]
    references = [row.get("references") or [row["reference"]] for row in ROWS]
    expected = one.tally(texts, references, one.score(texts, references, ["Q"] * 4)).score
    found = scored(seekr, file, metric)
    assert found == {"metric": metric, "score": pytest.approx(expected), "examples": 4}


def test_for_a_person_there_is_an_interval(seekr, tmp_path):
    done = seekr("score", write(tmp_path / "p.jsonl", lines(ROWS)), "--metric", "exact_match")
    assert done.out == "exact_match 50.00 (4 examples, 95% interval 0.0 to 100.0)\n"


@pytest.mark.parametrize(
    ("metric", "place"),
    [
        ("rouge_l_trace", "trace/MeetingBank"), ("edit_similarity_py150", "trace/Py150"),
        ("rouge_l_sapt", "superni/task748"), ("exact_match_normalised", "long_sequence/dbpedia"),
        ("sari_trace", "trace/20Minuten"),
    ],
)  # fmt: skip
def test_a_papers_task_scores_what_the_papers_package_says(metric, place, seekr, tmp_path, shared):
    given = rows_of(shared / "data" / place, most=10)
    rows = [
        {"prediction": noisy(answer, *NOISE[number % 4], seed=number), "reference": answer, "prompt": prompt}
        for number, (prompt, answer) in enumerate(given)
    ]
    if metric == "sari_trace":
        scores = [hugging_face_sari(row["prompt"], row["prediction"], row["reference"]) for row in rows]
    else:
        scores = [BY_PACKAGE[metric](row["prediction"], row["reference"]) for row in rows]
    found = scored(seekr, write(tmp_path / "p.jsonl", lines(rows)), metric)
    assert found["score"] == pytest.approx(sum(scores) / len(scores))
    assert found["examples"] == len(given)


def test_what_evaluations_write_scores_what_they_said(world, seekr, tmp_path):
    content = json.loads((world.run / "scores.json").read_text(encoding="utf-8"))
    for folder, row in zip(sorted((world.run / "evaluations").glob("0[1-9]-*")), content["matrix"][1:]):
        for task, score in zip(content["tasks"], row["scores"]):
            assert scored(seekr, folder / f"{task}.jsonl", "exact_match")["score"] == pytest.approx(score)
    # Of an answer with a rationale the answer alone was scored, and is scored again.
    rows = [{"prediction": "so\nAnswer:A", "scored": "A", "references": ["A"], "score": 100.0}]
    file = write(tmp_path / "p.jsonl", lines(rows))
    assert scored(seekr, file, "exact_match")["score"] == 100
    del rows[0]["scored"]
    write(file, lines(rows))
    assert scored(seekr, file, "exact_match")["score"] == 0
    assert scored(seekr, file, "exact_match", "--extract", "trace")["score"] == 100


def test_shapes_of_a_file(seekr, tmp_path):
    row = {"prediction": "a\u2028b", "reference": "a\u2028b", "other": 7}
    shapes = {
        "a list": json.dumps([row, row], indent=1),
        "a list with a mark": b"\xef\xbb\xbf" + json.dumps([row, row]).encode(),
        "Windows": b"\xef\xbb\xbf" + (lines([row]) * 2).replace("\n", "\r\n").encode(),
        "no last newline, empty lines": f"\n{lines([row])}\n  \n{json.dumps(row)}",
    }
    for name, content in shapes.items():
        file = write(tmp_path / "p.jsonl", content)
        assert scored(seekr, file, "exact_match") == {"metric": "exact_match", "score": 100, "examples": 2}, name


GOOD = {"prediction": "a", "reference": "a"}
BAD = {
    "prediction": ([GOOD, {"predicton": "a", "reference": "a"}], "row 2: no 'prediction'; rename 'predicton'?"),
    "reference": ([{"prediction": "a", "referance": "b"}], "row 1: no 'reference' or 'references'; rename 'referance'"),
    "other keys": ([{"text": "a", "reference": "b"}], "row 1: no 'prediction'; keys here: text, reference"),
    "both": ([{**GOOD, "references": ["a"]}], "row 1: both 'reference' and 'references'; keep one"),
    "a number": (
        [GOOD, GOOD, {"prediction": 7, "reference": "a"}],
        "row 3: 'prediction' must be a string, not a number",
    ),
    "null": ([{"prediction": None, "reference": "a"}], "row 1: 'prediction' must be a string, not null"),
    "truth": ([{"prediction": "a", "reference": True}], "row 1: 'reference' must be a string, not true or false"),
    "text for a list": ([{"prediction": "a", "references": "a"}], "row 1: 'references' must be a list of at least one"),
    "an empty list": ([{"prediction": "a", "references": []}], "row 1: 'references' must be a list of at least one"),
    "a list of numbers": (
        [{"prediction": "a", "references": ["a", 7]}],
        "row 1: 'references' must hold strings, not a",
    ),
    "prompt": ([{**GOOD, "prompt": ["x"]}], "row 1: 'prompt' must be a string, not a list"),
    "scored": ([{**GOOD, "scored": {}}], "row 1: 'scored' must be a string, not an object"),
    "no object": ("[]\n7\n", "p.jsonl: invalid JSON"),
    "no row": ("\n\n", "p.jsonl: holds no rows"),
    "an empty array": ("[]", "p.jsonl: holds no rows"),
    "a text": ('{"prediction": "a", "reference": "a"}\n"b"\n', "row 2: must be an object"),
    "cut": ('{"prediction": "a", "reference": "a"}\n{"prediction": "a', "row 2: invalid JSON"),
    "deep": ('{"prediction": ' + "[" * 100_000, "row 1: invalid JSON"),
    "not UTF-8": (b'{"prediction": "\xe4", "reference": "a"}', "row 1: not UTF-8 (byte 0xe4)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_row_and_key(name, seekr, tmp_path):
    content, message = BAD[name]
    file = write(tmp_path / "p.jsonl", lines(content) if isinstance(content, list) else content)
    done = seekr("score", file, "--metric", "exact_match", "--json")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {tmp_path}")
    assert "p.jsonl" in done.err
    assert message in done.err
    assert done.err.count("\n") == 1


def test_what_else_is_refused(seekr, tmp_path):
    file = write(tmp_path / "p.jsonl", lines([GOOD]))
    many = write(tmp_path / "many.jsonl", lines({"prediction": "a", "reference": str(n)} for n in range(1001)))
    refused = {
        ("score", file, "--metric", "rouge_trace"): "'rouge_trace' is unknown; did you mean 'rouge_l_trace'",
        ("score", file, "--metric", "sari"): "row 1: no 'prompt'; sari compares the answer with it",
        ("score", file, "--metric", "sari_trace"): "row 1: no 'prompt'; sari_trace compares the answer with it",
        ("score", file, "--metric", "f1", "--extract", "trac"): "'trac' is unknown; did you mean 'trace'",
        ("score", tmp_path / "q.jsonl", "--metric", "f1"): "q.jsonl: no such file; did you mean 'p.jsonl'",
        ("score", tmp_path, "--metric", "f1"): "is a folder; name a predictions file in it",
        ("score", many, "--metric", "macro_f1"): "many.jsonl: macro_f1: 1001 different references",
    }
    for words, message in refused.items():
        done = seekr(*words)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
        assert message in done.err
    unknown = seekr("score", file, "--metric", "bleu").err
    assert all(name in unknown for name in METRICS)


def test_no_model_library_is_loaded(tmp_path):
    """Torch takes seconds to import, and a machine that only scores need not have a working one."""
    file = write(tmp_path / "p.jsonl", lines([{**GOOD, "prompt": "Q"}]))
    code = (
        "import sys; from seekr_cl.cli.main import main\n"
        f"codes = [main(['score', {str(file)!r}, '--metric', name, '--json']) for name in {list(METRICS)!r}]\n"
        "print(codes, [name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{[0] * len(METRICS)} []"
