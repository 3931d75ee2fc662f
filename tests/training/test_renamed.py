"""Settings under their old names: read, warned of, and equal to the new ones on disk."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from zygote import run_seekr

from seekr_cl.config.overrides import apply_overrides
from seekr_cl.errors import ConfigError
from seekr_cl.renamed import RENAMED, RenamedWarning, as_named_now, rename_settings
from seekr_cl.tasks.stream import StreamSpec
from seekr_cl.training import SeekrConfig, config_from

PAIRS = [(old, value, new, values[value]) for old, (new, values) in RENAMED.items() for value in values]


@pytest.mark.parametrize(("old", "value", "new", "now"), PAIRS)
def test_an_old_name_means_the_new_one(tmp_path: Path, old: str, value: str, new: str, now: str) -> None:
    stream = tmp_path / "s.yaml"
    stream.write_text(f"model: m\n{old}: {value}\ntasks: [a.jsonl]\n")
    ways: list[Any] = [
        lambda: getattr(SeekrConfig(output_dir=str(tmp_path), **{old: value}), new),
        lambda: getattr(config_from({old: value}, str(tmp_path)), new),
        lambda: apply_overrides({new: "other"}, [f"{old}={value}"], None)[new],
        lambda: StreamSpec.from_yaml(stream).settings[new],
    ]
    for way in ways:
        with pytest.warns(FutureWarning, match=f"{old}: {value} is deprecated.*use {new}: {now}"):
            assert way() == now
    with warnings.catch_warnings():
        warnings.simplefilter("error", RenamedWarning)
        assert getattr(SeekrConfig(output_dir=str(tmp_path), **{new: now}), new) == now
    assert as_named_now({"training": {old: value}}) == {"training": {new: now}}
    written = {"deviations": [{"what": old, "official": value, "here": "x"}]}
    assert as_named_now(written) == {"deviations": [{"what": new, "official": now, "here": "x"}]}


def test_an_old_name_with_another_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"boundary: 'rough' is unknown.*prompt_boundary: separate or merged"):
        rename_settings({"boundary": "rough"})
    with pytest.raises(ConfigError, match="which is set to 'merged'; remove boundary"):
        rename_settings({"boundary": "exact", "prompt_boundary": "merged"})


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    done = run_seekr(["inspect", "--model", tmp_path / "none", "--task", "x", "boundary=joint"])
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if "deprecated" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: boundary: joint is deprecated")
