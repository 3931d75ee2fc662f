"""Settings of SEEKR."""

from dataclasses import dataclass
from typing import Annotated, Literal

from seekr_cl.errors import ConfigError
from seekr_cl.heads import resolve_budget
from seekr_cl.heads.importance import RULES
from seekr_cl.methods.common.logit_distillation import LogitSettings
from seekr_cl.methods.common.teachers import REDUCTIONS
from seekr_cl.methods.seekr.projections import STARTS
from seekr_cl.methods.seekr.scoring import MEASURES
from seekr_cl.settings import Ge, Gt, Hint, Lt, OneOf, setting

_ROWS = ("attention", "values")
_IS_OF_ROWS = "it is about rows"


@dataclass(frozen=True, kw_only=True)
class SeekrSettings(LogitSettings):
    """Settings of SEEKR; budgets are counts, fractions of what the model has, or null for all.

    Attributes:
        lambda2: weight of the attention term (eq. 13), or ``auto`` to steer it to ``attention_share``.
        attention_share: the attention term's share of all terms' gradient norms that ``lambda2: auto`` aims at.
        heads: how heads are chosen: ``importance`` (eq. 10), its factors ``sensitivity`` or ``forgettability`` alone,
            ``random``, or ``all``.
        target: what is held at the chosen heads and queries: their ``attention`` rows (eq. 5), rows of ``values``
            relations (MiniLMv2), the heads' outputs as ``hidden`` states (AFC), or the ``relations`` between a sample's
            outputs by their distances (RKD). The choice of heads looks at attention whatever the target.
        projection: under ``target: hidden``, outputs are held up to a matrix for each old task and head that is
            learned meanwhile (BFP) and begins as the ``identity`` or ``random`` (official code); ``none`` holds them as
            they were.
        projection_rate: learning rate of these matrices.
        layer_budget: B_L.
        head_budget: B_H, over all layers together.
        query_budget: B_T for each sample.
        query_positions: where queries are drawn: at ``all`` tokens, or at those that predict the ``answer``, of which
            the budget is then a count or fraction.
        importance_rule: ``product_of_sums`` (eq. 8 to 10) or ``sum_of_products`` (official code).
        measure: what S and F average over: ``valid``, ``frobenius`` (eq. 7 and 9) or ``padded`` (official code).
        attention_reduction: ``sample_mean`` averages over a sample's heads, queries and layers, then over samples;
            ``layer_mean`` over the union of the batch's layers (official code); ``sum`` adds heads and queries (eq. 5).
        attention_signal: what is stored of the teacher's attention rows: ``top_k`` entries of each, whole ``dense``
            rows, or the ``factors`` (queries and keys) they are computed from.
        attention_top_k: entries of a row under ``top_k``.
        attention_tail: what stands for the other entries: keys ``sampled`` from them, or one ``bucket``.
        attention_eps: added to the student's probabilities in the logarithm (official code: 1e-8).
        query_replacement: draw queries with replacement where a sample is shorter than the budget (official code).
        gradient_leak: let the scoring pass's gradients into the next task's first step (official code).
    """

    lambda2: Annotated[float | Literal["auto"], Ge(0), Hint("0 turns attention distillation off")] = "auto"
    attention_share: Annotated[float, Gt(0), Lt(1)] = setting(0.3, needs={"lambda2": "auto"})
    heads: Literal["importance", "random", "sensitivity", "forgettability", "all"] = "importance"
    target: Literal["attention", "values", "hidden", "relations"] = "attention"
    projection: Annotated[str, OneOf(STARTS)] = setting("none", needs={"target": "hidden"}, why="it maps outputs")
    projection_rate: Annotated[float, Gt(0)] = setting(
        0.1, needs={"projection": tuple(one for one in STARTS if one != "none")}
    )
    layer_budget: int | float | None = 0.75
    head_budget: int | float | None = 0.5
    query_budget: int | float | None = 100
    query_positions: Literal["all", "answer"] = setting(
        "all", needs={"measure": ("valid", "frobenius")}, why="the official code's measure draws from the padding too"
    )
    importance_rule: Annotated[str, OneOf(RULES)] = "product_of_sums"
    measure: Annotated[str, OneOf(MEASURES)] = "valid"
    attention_reduction: Annotated[str, OneOf(REDUCTIONS)] = "sample_mean"
    attention_signal: Literal["top_k", "dense", "factors"] = "top_k"
    attention_top_k: Annotated[int, Ge(1), Hint("attention_signal: dense keeps all")] = setting(
        32, needs={"attention_signal": "top_k"}
    )
    attention_tail: Literal["sampled", "bucket"] = setting(
        "sampled", needs={"target": _ROWS, "attention_signal": "top_k", "teacher": "stored"}, why=_IS_OF_ROWS
    )
    attention_eps: Annotated[float, Ge(0), Hint("0 is exact")] = setting(0.0, needs={"target": _ROWS}, why=_IS_OF_ROWS)
    query_replacement: bool = False
    gradient_leak: bool = False

    @property
    def scores_heads(self) -> bool:
        """Whether heads are measured: nothing else needs S and F, but the official code's leak needs their gradient."""
        return self.heads not in ("all", "random") or self.gradient_leak

    @property
    def steers(self) -> bool:
        """Whether a term's weight follows the measured gradient norms."""
        return self.lambda2 == "auto"

    def check(self) -> None:
        """Budgets mean something, and an adapter is asked for attention alone."""
        for key in ("layer_budget", "head_budget", "query_budget"):
            resolve_budget(f"method.{key}", getattr(self, key), 1 << 30, lambda _: None)
        if self.query_budget == 0:
            raise ConfigError("method.query_budget: 0 leaves nothing to measure; give a count, a fraction or null")
        if self.teacher == "adapter" and self.target != "attention":
            raise ConfigError(
                "method.teacher: adapters are asked for attention alone; use target: attention, or stored"
            )
