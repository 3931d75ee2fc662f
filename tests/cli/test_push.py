"""Handing a model over: what is sent, what never is, and what is said when the Hub refuses."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from cli_world import save_model, write
from hub_server import TOKEN, Hub, hub_server

from seekr_cl.cli.main import main

REPO = "owner/taught"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        # The Hub's own store needs its own server; the protocol before it is still spoken.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        # Where the library waits seconds before it tries again.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        yield made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with what must never be sent beside it."""
    folder = save_model(tmp_path_factory.mktemp("push") / "model")
    write(folder / "README.md", "---\nlicense: mit\n---\n# mine\n")
    write(folder / "seekr_carry.safetensors", b"optimizer")
    write(folder / "train.jsonl", '{"prompt": "secret", "completion": "text"}')
    write(folder / "memory" / "manifest.json", {})
    write(folder / "memory" / "tasks" / "a.safetensors", b"texts")
    write(folder / ".env", "HF_TOKEN=secret")
    write(folder.parent / "elsewhere.json", '{"secret": 1}')
    (folder / "vocab.json").symlink_to(folder.parent / "elsewhere.json")
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    assert main(["push", *map(str, words)]) == code
    shown = capsys.readouterr()
    if code:
        assert shown.err.count("\n") == 1
        assert shown.err.startswith("error: ")
    return shown.err if code else shown.out


def test_the_model_and_nothing_else_is_sent(hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(said(capsys, saved, REPO, "--private", "--json"))
    files = hub.repos[REPO]["files"]
    assert set(files) == {one["path"] for one in shown["files"]}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert files["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    assert hub.repos[REPO]["private"]
    assert shown["url"].startswith(f"{hub.url}/{REPO}/commit/")
    left = {one["path"] for one in shown["left_out"]}
    assert {"seekr_carry.safetensors", "train.jsonl", "memory/", ".env", "vocab.json"} <= left
    assert not any(b"secret" in content or b"optimizer" in content for content in files.values())


def test_only_the_scripts_that_a_model_names_are_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of ``auto_map`` and what they import beside them; scripts that merely lie there may hold secrets."""
    folder = save_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    owned = {"AutoModelForCausalLM": "modeling_own.Own", "AutoTokenizer": [None, "other/repo--token.Own"]}
    write(folder / "config.json", config | {"auto_map": owned})
    write(folder / "modeling_own.py", "import os\nfrom .layers import Layer\n")
    write(folder / "layers.py", "try:\n    from . import kernels, modeling_own\nexcept ImportError:\n    pass\n")
    for name in ("kernels", "token", "os", "upload"):
        write(folder / f"{name}.py", 'HF_TOKEN = "hf_secret"')
    shown = json.loads(said(capsys, folder, REPO, "--dry-run", "--json"))
    sent = {one["path"] for one in shown["files"] if one["path"].endswith(".py")}
    assert sent == {"modeling_own.py", "layers.py", "kernels.py"}
    assert {"token.py", "os.py", "upload.py"} <= {one["path"] for one in shown["left_out"]}
    write(folder / "layers.py", "def (")
    assert "layers.py" in said(capsys, folder, REPO, "--dry-run", code=2)


def test_a_dry_run_needs_no_token_and_no_network(
    hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    shown = said(capsys, saved, REPO, "--dry-run")
    assert "would send model.safetensors" in shown
    assert "leave out memory/" in shown
    assert hub.asked == []


def test_no_token_a_wrong_one_and_a_refusal(
    hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "401" in said(capsys, saved, REPO, code=2)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("seekr_cl.models.hub.get_token", lambda: None)
    assert "hf auth login" in said(capsys, saved, REPO, code=2)
    assert "OWNER/NAME" in said(capsys, saved, "no-owner", code=2)
    assert "cannot be a name" in said(capsys, saved, "a/b/c", code=2)


def test_a_push_that_was_broken_off_goes_on(hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.failures = [["/commit/", 500, 99]]
    assert "run the same command again" in said(capsys, saved, REPO, code=2)
    assert hub.repos[REPO]["files"] == {}
    assert hub.sent() == 1
    hub.failures = []
    said(capsys, saved, REPO)
    assert hub.sent() == 1, "weights that the Hub has are not sent twice"
    assert "model.safetensors" in hub.repos[REPO]["files"]


@pytest.mark.parametrize("failure", [["/api/repos/create", 503, 99], ["/preupload/", 0, 99], ["PUT /lfs/", 403, 99]])
def test_failures_are_one_line(
    hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str], failure: list[object]
) -> None:
    hub.failures = [failure]
    assert "push: " in said(capsys, saved, REPO, code=2)
    assert REPO not in hub.repos or hub.repos[REPO]["files"] == {}


def test_a_public_repository_does_not_pass_for_a_private_one(
    hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos[REPO] = {"private": False, "files": {}}
    assert "public" in said(capsys, saved, REPO, "--private", code=2)
    assert hub.repos[REPO]["files"] == {}


def test_what_is_no_model_is_refused(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "memory" / "manifest.json", {})
    assert "replay memory" in said(capsys, tmp_path / "memory", REPO, code=2)
    write(tmp_path / "run" / "models" / "01-a" / "config.json", {})
    assert "models/01-a" in said(capsys, tmp_path / "run", REPO, code=2)
    assert "no such folder" in said(capsys, tmp_path / "none", REPO, code=2)
    assert hub.asked == []


def test_an_adapter_names_its_base_as_the_hub_knows_it(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    config = {"peft_type": "LORA", "base_model_name_or_path": "/home/somebody/base"}
    write(adapter / "adapter_config.json", config)
    write(adapter / "adapter_model.safetensors", b"weights")
    assert "--base OWNER/NAME" in said(capsys, adapter, REPO, code=2)
    said(capsys, adapter, REPO, "--base", "owner/base")
    sent = json.loads(hub.repos[REPO]["files"]["adapter_config.json"])
    assert sent == config | {"base_model_name_or_path": "owner/base"}
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "/home/somebody/base"
