"""``general: self``: what the base model writes into task 0, its filters, its repetition, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import assert_same, config_for, constant_task, memory_tensors, save_base
from transformers import AutoTokenizer

from seekr_cl.errors import ConfigError
from seekr_cl.memory import ReplayMemory
from seekr_cl.planning import Workload, make_plan, read_shape
from seekr_cl.training import learn, phases

CHAT = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + (eos_token if m['role'] == 'assistant' else '.') }}"
    "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def written(base: Path, folder: Path, general: Any, **more: Any) -> list[Any]:
    """The samples of task 0."""
    settings = {"general": general, "general_samples": 5, "max_length": 32} | more
    learn(
        base, constant_task("yes", "yes", 4), folder / "memory", folder / "m", config_for("derpp", folder, **settings)
    )
    return ReplayMemory.open(folder / "memory").tasks[0].samples


def test_a_base_model_writes_from_nothing(base: Path, tmp_path: Path) -> None:
    general = {"source": "self", "max_new_tokens": 12}
    samples = written(base, tmp_path / "a", general)
    assert len(samples) == 5
    assert len({tuple(one.ids_L.tolist()) for one in samples}) == 5
    for one in samples:
        assert one.prompt == ""
        assert one.completion_start == 1
        assert 4 <= len(one.ids_L) - 1 <= 12
        assert one.logits is not None
    again = written(base, tmp_path / "b", general)
    assert [one.ids_L.tolist() for one in again] == [one.ids_L.tolist() for one in samples]
    other = written(base, tmp_path / "c", general | {"temperature": 0.3}, seed=1)
    assert [one.ids_L.tolist() for one in other] != [one.ids_L.tolist() for one in samples]


def test_it_answers_given_prompts(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {letter}:", "completion": "never seen"} for letter in "abcdef"]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    samples = written(
        base, tmp_path, {"source": "self", "max_new_tokens": 8, "prompts": str(tmp_path / "prompts.json")}
    )
    assert len(samples) == 5
    assert len({one.prompt for one in samples}) == 5
    assert {one.prompt for one in samples} <= {row["prompt"] for row in rows}
    assert not any("never" in one.completion for one in samples)


def test_a_chat_model_asks_and_answers(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHAT
    (tmp_path / "template.jinja").write_text(CHAT)
    general = {"source": "self", "max_new_tokens": 10}
    samples = written(base, tmp_path, general, chat_template=str(tmp_path / "template.jinja"))
    for one in samples:
        assert one.prompt.startswith("u:")
        assert one.prompt.endswith(".a:")
        assert tokenizer.decode(one.ids_L[: one.completion_start]).replace(" ", "") == one.prompt.replace(" ", "")


def test_what_is_not_kept_is_counted(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs of four tokens: of a text that repeats itself each but the first has come before."""
    from seekr_cl.config.general import SelfWritten
    from seekr_cl.training.self_written import _Writer

    class Here:
        seed = 0
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = type("Model", (), {"generation_config": None})

    writer = _Writer(SelfWritten(), Here(), None, 9)  # type: ignore[arg-type]
    repeating, fine = [5, 6, 5, 6, 5, 6, 5, 6], [5, 6, 7, 8, 9, 5]
    assert [writer._may_stay(new, "") for new in (repeating, fine, [*fine, 2], [5, 6, 2], fine)] == [
        *(False, True, False, False, False),
    ]
    assert writer.left_out == {"repeating": 1, "written before": 2, "short": 1}
    with pytest.warns(UserWarning, match=r"general: self: \d of 5 samples"):
        few = written(base, tmp_path, {"source": "self", "max_new_tokens": 6, "min_tokens": 6, "tries": 1})
    assert 0 < len(few) < 5


class KilledError(Exception):
    pass


def test_it_goes_on_with_what_was_written(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"general": "self", "general_samples": 3, "max_length": 24}
    config = config_for("derpp", tmp_path, **settings)
    given = (base, constant_task("yes", "yes", 4), tmp_path / "memory", tmp_path / "m", config)

    def killed(*given: Any, **more: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(phases, "choose_samples", killed)
        with pytest.raises(KilledError):
            learn(*given)
    monkeypatch.setattr("seekr_cl.training.sample_selection.write_general", killed)
    learn(*given, resume=True)
    monkeypatch.undo()
    learn(*given[:2], tmp_path / "whole", tmp_path / "m2", config)
    assert_same(memory_tensors(tmp_path / "memory"), memory_tensors(tmp_path / "whole"))


def test_what_cannot_be_is_refused(base: Path, tmp_path: Path) -> None:
    for general, said in [
        ({"source": "model"}, r"general\.source: 'model' is not self"),
        ({"source": "self", "tokens": 3}, "general: unknown key 'tokens'"),
        ({"source": "self", "temperature": 0}, r"general\.temperature"),
        (3, "general: 3 is no file's name"),
    ]:
        with pytest.raises(ConfigError, match=said):
            config_for("derpp", tmp_path, general=general)
    with pytest.raises(ConfigError, match="general: method seqft keeps no samples"):
        config_for("seqft", tmp_path, general="self")
    with pytest.raises(ConfigError, match="none of what the model writes can be kept"):
        written(base, tmp_path, {"source": "self", "max_new_tokens": 3})


def test_the_plan_says_how_much_may_be_written(base: Path, tmp_path: Path) -> None:
    work = Workload([12, 12], [1.0, 1.0], 10, 3)
    config = config_for("replay", tmp_path, general={"source": "self", "max_new_tokens": 5, "tries": 2})
    overhead = make_plan(read_shape(str(base)), config, work).overhead
    assert (overhead.texts, overhead.positions) == (64, 64 * (7 + 5 - 1))
    assert torch.is_grad_enabled()
