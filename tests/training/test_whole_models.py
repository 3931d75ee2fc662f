"""A model's folder gives all of its weights, a vector for every token, and what is written is what was trained."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tinylm import char_tokenizer, config_for, reverse_task, save_base
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from seekr_cl.cli.main import main
from seekr_cl.config.tried import try_settings
from seekr_cl.errors import ConfigError, DataError, ModelError, OutputError
from seekr_cl.memory import model_hash
from seekr_cl.models.loading import load_model, save_model
from seekr_cl.models.whole import require_written
from seekr_cl.runs.stream_run import run
from seekr_cl.tasks import Example, Task
from seekr_cl.training import learn

CASES = Path(os.environ.get("SEEKR_SHARED", "/nowhere")) / "cases"


def altered(base: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A copy of the base whose weights are changed."""
    shutil.copytree(base, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def without(*names: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if name not in names}


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_a_weight_that_is_missing(base: Path, tmp_path: Path, name: str) -> None:
    folder = altered(base, tmp_path / "model", without(name))
    with pytest.raises(ModelError, match=rf"model: lacks 1 of its weights \({name}\)"):
        load_model(folder)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match="lacks 1 of its weights"):
        learn(folder, reverse_task(), tmp_path / "memory", tmp_path / "out", config_for("replay", tmp_path))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("rename", "prefix"),
    [
        (lambda name: f"_orig_mod.{name}", r"_orig_mod\."),
        (lambda name: f"module.{name}", r"module\."),
        (lambda name: f"module._orig_mod.{name}", r"module\._orig_mod\."),
        (lambda name: name.replace(".mlp.", "._orig_mod.mlp."), r"_orig_mod\."),
    ],
)
def test_weights_under_a_wrapper_s_names(base: Path, tmp_path: Path, rename: Callable[[str], str], prefix: str) -> None:
    folder = altered(base, tmp_path / "model", lambda weights: {rename(name): one for name, one in weights.items()})
    with pytest.raises(ModelError, match=rf"names of its weights begin with '{prefix}'.* take '{prefix}' off"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("lm_head.weight"), r"lacks 1 of its weights \(lm_head\.weight\)"),
        (
            lambda weights: weights | {"model.norm.weight": torch.ones(3)},
            r"1 of its weights \(model\.norm\.weight\) have other shapes than config\.json says",
        ),
    ],
)
def test_a_model_that_is_refused_is_one_line(
    base: Path, tmp_path: Path, change: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers' own table calls the same thing a newly initialized weight that may be trained."""
    folder = altered(base, tmp_path / "model", change)
    given = ["--model", str(folder), "--memory", str(tmp_path / "memory"), "--output", str(tmp_path / "out")]
    assert main(["learn", *given, "--task", str(_task_file(tmp_path)), "use_cpu=true"]) == 2
    assert re.fullmatch(rf"error: .*model: .*{said}.*\n", capsys.readouterr().err)


def test_weights_that_nothing_asks_for_are_still_reported(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_model(altered(base, tmp_path / "model", lambda weights: weights | {"tower.weight": torch.ones(2)}))
    assert caplog.text.count("tower.weight") == 1


def _task_file(folder: Path) -> Path:
    path = folder / "task.json"
    path.write_text(json.dumps([{"prompt": "a=", "answer": "b"}] * 4), encoding="utf-8")
    return path


def test_what_is_rightly_missing(tmp_path: Path) -> None:
    """A head that is the embedding is written once."""
    config = LlamaConfig(
        vocab_size=len(char_tokenizer()), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    char_tokenizer().save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    model, tokenizer = load_model(tmp_path / "tied")
    save_model(tmp_path / "again", model, tokenizer)
    assert model_hash(load_model(tmp_path / "again")[0]) == model_hash(model)


def grown(base: Path, folder: Path, *tokens: str, pad: str | None = None, special: bool = False) -> Path:
    """A copy of the base whose tokenizer has more tokens than the model has rows."""
    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokens:
        tokenizer.add_tokens(list(tokens), special_tokens=special)
    if pad is not None:
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("tokens", "pad"), [((), "[PAD]"), (("<col>", "<row>"), None), (("<col>",), "[PAD]")])
def test_tokens_without_a_row(base: Path, tmp_path: Path, tokens: tuple[str, ...], pad: str | None) -> None:
    folder = grown(base, tmp_path / "model", *tokens, pad=pad)
    rows = len(char_tokenizer())
    said = rf"model: the tokenizer has {rows + len(tokens) + bool(pad)} tokens, the model {rows} rows .*resize"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match=said):
        learn(folder, reverse_task(), tmp_path / "memory", tmp_path / "out", config_for("replay", tmp_path))
    with pytest.raises(ModelError, match=said):
        run(folder, [reverse_task()], tmp_path / "run", config_for("replay", tmp_path))
    (tmp_path / "task.json").write_text(json.dumps([{"prompt": "a", "completion": "b"}]))
    assert main(["evaluate", "--model", str(folder), "--task", str(tmp_path / "task.json"), "--output",
                 str(tmp_path / "scores")]) == 2  # fmt: skip
    (tmp_path / "task.json").unlink()
    assert sorted(tmp_path.iterdir()) == before


def test_a_special_token_for_other_uses_may_lack_a_row(base: Path, tmp_path: Path) -> None:
    """As an image's place in the tokenizer of a model for text; a text that holds it is refused by name."""
    folder = grown(base, tmp_path / "model", "<image>", special=True)
    load_model(folder)
    task = Task("seen", [Example("abc", "d"), Example("a<image>b", "c")], test=[Example("a<image>", "c")])
    with pytest.raises(DataError, match=r"task 'seen': holds token \d+, the model has \d+ rows"):
        learn(folder, task, tmp_path / "memory", tmp_path / "out", config_for("replay", tmp_path))
    tested = Task("tested", [Example("abc", "d")], test=[Example("a<image>", "c")], max_new_tokens=4)
    with pytest.raises(DataError, match="task 'tested': holds token"):
        run(folder, [tested], tmp_path / "run", config_for("replay", tmp_path))
    assert not (tmp_path / "out.checkpoints").exists()


@pytest.fixture
def packed() -> Path:
    folder = CASES / "mxfp4-checkpoint-written-wrong" / "model"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def test_weights_unpacked_on_loading_are_written_unpacked(packed: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(packed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01)
    save_model(tmp_path / "out", model, tokenizer)
    assert model_hash(load_model(tmp_path / "out")[0]) == model_hash(model)


def test_what_cannot_be_read_back_is_not_kept(packed: Path, tmp_path: Path) -> None:
    """As transformers alone would write it."""
    model = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(packed)
    with pytest.raises(OutputError, match=r"out: 2 of its weights .*experts.* cannot be read back"):
        save_model(tmp_path / "out", model, tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_state_dict_that_lacks_a_weight_is_not_kept(base: Path, tmp_path: Path) -> None:
    model, _ = load_model(base)
    model.save_pretrained(tmp_path / "wrong", state_dict=without("lm_head.weight")(model.state_dict()))
    with pytest.raises(OutputError, match=r"lm_head\.weight"):
        require_written(tmp_path / "wrong", model)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", lambda text: text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 1000000')),
        ("config.json", lambda text: "[" * 1_000_000),
        ("config.json", lambda text: "[" + "[]," * 2_000_000 + "[]]"),
    ],
)
def test_a_config_that_nobody_writes(base: Path, tmp_path: Path, file: str, content: Callable[[str], str]) -> None:
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / file).write_text(content((base / file).read_text()))
    with pytest.raises(ModelError, match=file.replace(".", r"\.")):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "hole", "folder"])
def test_files_that_are_no_files(base: Path, tmp_path: Path, file: str, kind: str) -> None:
    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / file
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 39)
    with pytest.raises(ModelError, match=r"model"):
        load_model(tmp_path / "model")


def carried(base: Path, tmp_path: Path, **settings: Any) -> None:
    first = config_for("replay", tmp_path, carry_optimizer=True)
    if not (tmp_path / "m1").exists():
        learn(base, reverse_task("first"), tmp_path / "memory", tmp_path / "m1", first)
    second = config_for("replay", tmp_path, carry_optimizer=True, **settings)
    learn(tmp_path / "m1", reverse_task("second"), tmp_path / "memory", tmp_path / "m2", second)


def test_an_optimizer_s_state_of_another_kind(base: Path, tmp_path: Path) -> None:
    learn(
        base, reverse_task("first"), tmp_path / "memory", tmp_path / "m1",
        config_for("replay", tmp_path, carry_optimizer=True),
    )  # fmt: skip
    path = tmp_path / "m1" / "seekr_carry.safetensors"
    good = load_file(path)
    name = next(key for key in good if key.endswith("q_proj.weight/exp_avg"))
    for change in (
        {key: one for key, one in good.items() if not key.endswith("/step")},
        good | {name: torch.zeros(3, 3)},
        good | {name.replace("/exp_avg", "/unknown"): torch.zeros(())},
        {f"odd/{key}": one for key, one in good.items()},
        good | {f"gradient/{name.split('/')[1]}": torch.zeros(2)},
    ):
        save_file(change, path)
        with pytest.raises(ModelError, match=r"seekr_carry\.safetensors: .*(keeps|does not belong to this model)"):
            carried(base, tmp_path)
        assert not (tmp_path / "m2.checkpoints").exists()
    save_file(good, path)
    with pytest.raises(ModelError, match="use the former optim"):
        carried(base, tmp_path, optim="sgd")
    carried(base, tmp_path)


REFUSED: list[dict[str, Any]] = [
    {"optim": "adamw_bnb_8bit"}, {"optim": "galore_adamw"}, {"lr_scheduler_type": "cosine_with_min_lr"},
    {"lr_scheduler_type": "warmup_stable_decay"}, {"optim_args": "a"}, {"fsdp": "full_shard"}, {"adam_epsilon": -1},
    {"torch_compile_backend": "os.system"}, {"parallelism_config": {"a": 1}}, {"learning_rate": float("inf")},
    {"seed": 10**30}, {"seed": (1 << 63) - 1}, {"num_train_epochs": 1e9}, {"dataloader_num_workers": 100_000},
    {"optim_target_modules": ["q_proj"]}, {"report_to": "wandb"}, {"lr_scheduler_kwargs": {"other": 1}},
    {"accelerator_config": {"other": 1}}, {"weight_decay": float("inf")}, {"num_train_epochs": 1e6},
    {"warmup_steps": 1e30},
]  # fmt: skip


@pytest.mark.parametrize("settings", REFUSED, ids=str)
def test_settings_are_refused_before_anything_is_prepared(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    task = reverse_task(count=200)

    def learning() -> None:
        learn(base, task, tmp_path / "memory", tmp_path / "out", config_for("seqft", tmp_path, **settings))

    def running() -> None:
        run(base, [task], tmp_path / "run", config_for("seqft", tmp_path, **settings))

    for begin in (learning, running):
        with pytest.raises(ConfigError) as caught:
            begin()
        said = str(caught.value)
        assert "\n" not in said
        key = next(iter(settings))
        assert key in said or said.startswith("training settings: ")
        assert not [path for path in tmp_path.iterdir() if path.name != "trainer"]


def test_trying_settings_draws_nothing(base: Path, tmp_path: Path) -> None:
    config = config_for("seqft", tmp_path)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    assert try_settings(config) == {"step", "exp_avg", "exp_avg_sq"}
    assert torch.equal(torch.rand(3), wanted)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "model")


@pytest.mark.parametrize("how", ["trained", "saved beside"])
def test_an_adapter_with_a_grown_vocabulary_says_the_way_out(base: Path, tmp_path: Path, how: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base)
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows + 2)
    more = {"modules_to_save": ["embed_tokens", "lm_head"]} if how == "trained" else {}
    grown = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **more))
    grown.save_pretrained(tmp_path / "a", save_embedding_layers=how != "trained")
    with pytest.raises(
        ModelError, match=rf"{rows + 2} rows, the base model {rows}: .*resize_token_embeddings\({rows + 2}"
    ):
        load_model(tmp_path / "a")


def test_a_vision_models_processor_is_written_with_it(base: Path, tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    folder, tokenizer = tmp_path / "model", AutoTokenizer.from_pretrained(base)
    size = len(tokenizer) + 8
    text = {"vocab_size": size, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": ["full_attention"]}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4,
        image_token_index=size - 1, boi_token_index=size - 2, eoi_token_index=size - 3,
    )  # fmt: skip
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = '{"image_processor_type": "Gemma3ImageProcessor"}'
    (folder / "preprocessor_config.json").write_text(processor)
    save_model(tmp_path / "out", *load_model(folder))
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == processor
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [
        "Gemma3ForConditionalGeneration"
    ]
