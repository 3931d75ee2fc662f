"""A key in the wrong place is told where it belongs."""

import dataclasses
from pathlib import Path

import pytest

from seekr_cl.cli import commands  # noqa: F401  the command line declares its own words
from seekr_cl.config.seekr_config import SeekrConfig, config_from
from seekr_cl.config.trainer_settings import DECIDED
from seekr_cl.errors import ConfigError
from seekr_cl.memory.memory_config import MemoryConfig
from seekr_cl.methods import METHODS
from seekr_cl.placement import OTHER_WORDS
from seekr_cl.replay.replay_config import ReplayConfig
from seekr_cl.tasks.stream import _TASK_KEYS, task_spec

AT_TOP = [one.name for one in dataclasses.fields(SeekrConfig) if one.init and one.name not in DECIDED]
UNDER = {
    "replay": [one.name for one in dataclasses.fields(ReplayConfig)],
    "memory": [one.name for one in dataclasses.fields(MemoryConfig)],
    "method": [one.name for one in dataclasses.fields(METHODS["seekr"].Settings)],
}


def said(**settings: object) -> str:
    with pytest.raises(ConfigError) as refused:
        config_from(settings, "trainer", "c.yaml")
    return str(refused.value)


@pytest.mark.parametrize("section", UNDER)
def test_a_section_s_key_at_the_top(section):
    for key in UNDER[section]:
        if key not in (*AT_TOP, *OTHER_WORDS["the top"]):
            assert f"it belongs under {section}: write {section}.{key}=VALUE" in said(**{key: 1}), key


@pytest.mark.parametrize("section", UNDER)
def test_a_key_of_the_top_in_a_section(section):
    for key in ("learning_rate", "peft", "general", "seed"):
        assert f"it belongs at the top level of the settings: write {key}=VALUE" in said(**{section: {key: 1}}), key


def test_a_key_of_a_task_at_the_top():
    for key in {*_TASK_KEYS} - {*AT_TOP, *OTHER_WORDS["the top"], "limit", "name"}:
        message = said(**{key: 1})
        assert "it belongs to a task's entry of a stream" in message, key
        assert key in message.split("write", 1)[1]


def test_settings_in_a_task_and_of_another_method():
    for key, place in (("learning_rate", "the top level"), ("ratio", "replay.ratio"), ("lambda2", "method.lambda2")):
        with pytest.raises(ConfigError, match=f"task 1: unknown key '{key}'; it belongs .*{place}"):
            task_spec({"data": "x", key: 1}, "s.yaml: task 1", Path())
    assert "it is a setting of method" in said(method={"name": "replay", "lambda2": 1})


def test_adapters_options_streams_and_other_tools_words():
    assert "write peft_type" in said(peft={"type": "lora"})
    assert "it belongs under peft: write peft.r=VALUE" in said(r=8)
    assert "--output" in said(output="x")
    assert "--model" in said(model="x")
    assert "write learning_rate" in said(lr=1)
    assert "its folder is named with --memory" in said(memory="folder")


def test_a_slip_is_still_a_slip():
    assert "did you mean 'learning_rate'?" in said(learning_rat=1)
    assert said(nonsense_word=1) == "c.yaml: unknown key 'nonsense_word'"
