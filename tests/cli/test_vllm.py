"""What is handed to vLLM, which is stood in for: a package of that name that answers with the same token every time."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tinylm import char_tokenizer

from seekr_cl.cli.main import main

TEMPLATE = (
    "{% for one in messages %}{{ one['role'] }}: {{ one['content'] }}<unk>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class StandIn:
    def __init__(self, **_: Any) -> None:
        self.stops: list[list[int]] = []

    def generate(self, asked: list[Any], settings: dict[str, Any], **_: Any) -> list[Any]:
        STOPS.append(settings["stop_token_ids"])
        ids = char_tokenizer()("y", add_special_tokens=False)["input_ids"] + settings["stop_token_ids"][-1:]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)]) for _ in asked]


STOPS: list[list[int]] = []


def test_the_ends_of_a_given_templates_turns_stop_answers(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(__version__="0", LLM=StandIn, SamplingParams=dict)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "y"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    words = ["evaluate", "--engine", "vllm", "--model", str(base), "--task", str(tmp_path / "rows.jsonl")]
    words += ["--output", str(tmp_path / "scores"), "--max-new-tokens", "4", f"chat_template={tmp_path / 't.jinja'}"]
    STOPS.clear()
    assert main(words) == 0
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["evaluation"]["decoding"]["stop"] == ["</s>", "<unk>"]
    assert [char_tokenizer().convert_tokens_to_ids(["</s>", "<unk>"])] == STOPS
    assert scores["tasks"]["rows"]["score"] == 100
