"""What the contract refuses: not saying how a method works on weights, or saying what follows from another flag."""

from pathlib import Path
from typing import Any

import pytest
from tinylm import config_for, constant_task, save_base, teach

from seekr_cl.errors import ConfigError
from seekr_cl.methods import METHODS, LossTerm, Method, Paper
from seekr_cl.methods.replay import Replay
from seekr_cl.methods.seekr.settings import SeekrSettings


@pytest.mark.parametrize("hook", ["before_step", "after_step", "finished_model"])
def test_whoever_may_see_weights_says_whether_it_does(hook: str) -> None:
    with pytest.raises(ConfigError, match=rf"Silent\.{hook}: .*weight_access = 'whole'"):
        type("Silent", (Method,), {hook: lambda self, *given: None})
    for access in ("none", "whole", "sharded"):
        said = type("Said", (Method,), {hook: lambda self, *given: None, "weight_access": access})
        assert type("Below", (said,), {hook: lambda self, *given: None}).weight_access == access


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"memory": "some"}, r"memory: 'some'; choose from none, kept, replayed"),
        ({"weight_access": "all"}, r"weight_access: 'all'; choose from none, whole, sharded"),
        ({"replays": True}, r"replays: follows from memory"),
        ({"keeps": True}, r"keeps: follows from memory"),
    ],
)
def test_a_flag_that_cannot_be_is_refused(part: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        type("Odd", (Method,), part)


def test_derived_flags_follow_from_memory() -> None:
    found = {(kind.memory, kind.keeps, kind.replays) for kind in METHODS.values()}
    assert found == {("none", False, False), ("kept", True, False), ("replayed", True, True)}


class Steering(Replay):
    """Replay whose weight is steered to a share of the gradient."""

    name = "steering"
    paper = Paper("None", "Nobody, 2026", "https://example.org")
    Settings = SeekrSettings

    def replay_loss(self, model: Any, batch: Any) -> dict[str, LossTerm]:
        """The loss on old labels, to be three tenths of all."""
        (term,) = super().replay_loss(model, batch).values()
        term.grad_norm_share = 0.3
        return {"replay": term}


def test_any_method_can_have_a_term_steered_if_its_settings_say_so(tmp_path: Path) -> None:
    base, tasks = save_base(tmp_path / "base"), [constant_task("yes", "yes", 8), constant_task("no", "no", 8)]
    config = config_for("replay", tmp_path, measure_every=1, learning_rate=0.01)

    def given(lambda2: Any) -> Any:
        return {"name": "steering", "lambda2": lambda2}

    METHODS["steering"] = Steering
    try:
        config = config_for(given("auto"), tmp_path, measure_every=1, learning_rate=0.01)
        log = teach(base, tmp_path / "one", tasks, config)[1].log
        steered = [line for line in log if "weight_replay" in line]
        assert steered
        assert steered[-1]["weight_replay"] != 1
        with pytest.raises(ConfigError, match="its term 'replay' has a grad_norm_share; give its Settings a property"):
            teach(base, tmp_path / "two", tasks, config_for(given(1.0), tmp_path))
        with pytest.raises(ConfigError, match="measure_every"):
            config_for(given("auto"), tmp_path, measure_every=0)
    finally:
        METHODS.pop("steering")
