import json

import pytest

from seekr_cl.errors import ConfigError
from seekr_cl.tasks import Task
from seekr_cl.tasks.extraction import EXTRACTIONS, get_extraction

TRACE = {
    "no mark": (" B \n", "B"),
    "answer": ("because of x\nAnswer: A ", "A"),
    "Chinese, wide colon": ("因为\n回答：A", "A"),
    "Chinese, colon": ("因为\n答案:C", "C"),
    "up to the next": ("x\nAnswer:1\nAnswer:2", "1"),
    "code first": ("import os\nReasoning:it needs\nAnswer:no", "import os"),
    "code, wide colon": ("import os\nReasoning：it needs", "import os"),
    "English before Chinese": ("x\n回答:甲\nAnswer:B", "B"),
    "no line before": ("Answer:B", "Answer:B"),
    "nothing after": ("x\nAnswer:", ""),
    "empty": ("", ""),
    "wide colon elsewhere": ("a：b", "a:b"),
}


@pytest.mark.parametrize(("text", "answer"), TRACE.values(), ids=list(TRACE))
def test_trace(text, answer):
    assert get_extraction("trace")(text) == answer
    assert get_extraction("whole")(text) == text


def test_real_rationales_end_in_their_answers(shared):
    extract, folder = EXTRACTIONS["trace"], shared / "data" / "trace_reasoning"
    letters = {"C-STANCE": set("ABC"), "FOMC": set("ABC"), "ScienceQA": set("ABCDE")}
    for task, allowed in letters.items():
        rows = json.loads((folder / task / "train.json").read_text(encoding="utf-8"))
        assert {extract(row["answer"]) for row in rows} <= allowed
    for task in ("NumGLUE-cm", "NumGLUE-ds"):
        for row in json.loads((folder / task / "train.json").read_text(encoding="utf-8")):
            number = extract(row["answer"])
            assert row["answer"].endswith(f"\nAnswer:{number}")
            assert len(number) < 20
    for row in json.loads((folder / "Py150" / "train.json").read_text(encoding="utf-8")):
        code = extract(row["answer"])
        assert row["answer"].startswith(code)
        assert "\n" not in code


def test_an_unknown_one_is_named():
    with pytest.raises(ConfigError, match="task 'a': extract: 'traces' is unknown; did you mean 'trace'"):
        Task("a", [], extract="traces")
