"""``seekr doctor``: versions, devices, kernels, and what a model supports."""

import json
from typing import Any

from rich.text import Text

from seekr_cl.cli.output import out
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.errors import ConfigError
from seekr_cl.planning.doctor import Diagnosis, diagnose
from seekr_cl.system.visible import visible

_STYLES = {"ok": "green", "missing": "dim", "no": "yellow", "problem": "bold red"}


def doctor(given: Any, config: SeekrConfig) -> None:
    """Prints what was found.

    Raises:
        ConfigError: if something is wrong that commands would fail over.
    """
    made = diagnose(given.model, config)
    if given.json:
        print(json.dumps(made.to_json(), indent=2, ensure_ascii=False))
    else:
        _show(made)
    if made.problems:
        raise ConfigError(f"doctor: {made.problems} problems; mend what is marked")


def _show(made: Diagnosis) -> None:
    console, group = out(), ""
    for one in made.findings:
        if one.group != group:
            console.print(Text(one.group, style="bold"))
            group = one.group
        line = Text(f"  {one.state:<8}", style=_STYLES[one.state])
        console.print(line.append(f"{visible(one.name)}: {visible(one.detail)}", style="default"), soft_wrap=True)
