"""``average``: the weights that a task ends with are an average, under every method."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

from seekr_cl.settings import Ge, Gt, Hint, Le, Lt, Settings, build_kind


@dataclass(frozen=True, kw_only=True)
class AverageSettings(Settings):
    """Base of the three groups.

    Attributes:
        kind: what the setting calls it.
    """

    section: ClassVar[str] = "average"
    kind: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class SFASettings(AverageSettings):
    """Sequential fine-tuning with averaging ("Soup to go", arXiv 2501.05559): theta <- (1 - beta) theta + beta theta_o.

    theta_o are the weights before the task.

    Attributes:
        beta: share of the weights before the task in each average.
        period: part of the task's steps after which the average is taken, again and again, and at the end.
    """

    kind = "sfa"
    beta: Annotated[float, Gt(0), Lt(1), Hint("0 is no average, 1 learns nothing")] = 0.5
    period: Annotated[float, Gt(0), Le(1), Hint("1 averages once, at the end")] = 0.25


@dataclass(frozen=True, kw_only=True)
class WiSEFTSettings(AverageSettings):
    """WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903): at the end theta_o + alpha (theta - theta_o).

    theta_o are the weights before the task.

    Attributes:
        alpha: how far to go from the weights before the task to those after it.
    """

    kind = "wise_ft"
    alpha: Annotated[float, Gt(0), Lt(1), Hint("0 learns nothing, 1 is no average")] = 0.5


@dataclass(frozen=True, kw_only=True)
class EMASettings(AverageSettings):
    """Exponential moving average of the weights over a task's steps, begun at the weights before it.

    With an adapter it is the slow one of SuRe's two (Hazard et al., 2025, arXiv 2511.22367).

    Attributes:
        decay: what a step leaves of the average.
    """

    kind = "ema"
    decay: Annotated[float, Ge(0), Lt(1), Hint("1 learns nothing")] = 0.99


KINDS: dict[str, type[AverageSettings]] = {kind.kind: kind for kind in (SFASettings, WiSEFTSettings, EMASettings)}


def read_average(value: Any) -> AverageSettings | None:
    """The ``average`` setting: a kind, a mapping with ``kind`` and settings, or nothing.

    Raises:
        ConfigError: for an unknown kind or key, naming the nearest, or a value that cannot be.
    """
    if value is None or isinstance(value, AverageSettings):
        return value
    return build_kind(KINDS, value, "average", "kind", "{kind: sfa, beta: 0.5}")


def as_json(settings: AverageSettings | None) -> dict[str, Any] | None:
    """Kind and settings."""
    return None if settings is None else {"kind": settings.kind} | asdict(settings)
