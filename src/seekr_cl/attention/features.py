"""What else can be held at the heads and queries whose attention rows are: value relations, outputs, their distances.

Shapes: B batch, H query heads, K key/value heads, L sequence length, D head size,
P (sample, head) pairs, R query rows per pair, T tasks, K (task, head) places of a layer that have a map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seekr_cl.attention.actions import DistillRows
from seekr_cl.attention.call import AttentionCall
from seekr_cl.attention.divergence import row_kl
from seekr_cl.attention.targets import RowTarget


def value_call(call: AttentionCall) -> AttentionCall:
    """The call whose attention rows are the layer's value relations, softmax(V V^T / sqrt(D)) under the same mask.

    Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
    2021, arXiv 2012.15828, eq. 4 to 6 with A = V; causal as the model is.
    """
    v_BHLD = call.v_BKLD.repeat_interleave(call.group, 1)
    scaling = call.v_BKLD.shape[-1] ** -0.5
    return replace(call, q_BHLD=v_BHLD, k_BKLD=call.v_BKLD, scaling=scaling, softcap=None, sink_H=None)


class DistillValues(DistillRows):
    """Holds value relations as ``DistillRows`` holds attention: KL(teacher's row, student's row)."""

    def compare(self, call: AttentionCall, output_BLHD: Tensor, target: RowTarget) -> Tensor:
        """The layer's weighted divergence."""
        return row_kl(value_call(call), target, self.eps)


class DistillOutputs(DistillRows):
    """Holds the heads' outputs themselves: mean_D (o - o')^2.

    The form of Kang et al., "Class-Incremental Learning by Knowledge Distillation with Adaptive Feature
    Consolidation", CVPR 2022, arXiv 2204.00895 (eq. 7): a squared distance of feature maps weighed by their
    importance. Maps are heads here, and a head's importance decides whether it is among the chosen.
    """

    def compare(self, call: AttentionCall, output_BLHD: Tensor, target: RowTarget) -> Tensor:
        """The layer's weighted distance."""
        now_PRD, then_PRD = _outputs(output_BLHD, target)
        return (target.weight_PR * (now_PRD - then_PRD).square().mean(-1)).sum()


@dataclass(frozen=True, slots=True)
class HeadMaps:
    """One layer's linear maps from what heads give now to what they gave when a task had been learned.

    Attributes:
        matrix_KDD: the maps.
        slot_TH: which of them is a task's and a head's; -1 where there is none.
    """

    matrix_KDD: Tensor
    slot_TH: Tensor


class DistillProjected(DistillRows):
    """Holds what a map makes of the heads' outputs, so that these may change linearly: ||A o - o'||_2 / sqrt(D).

    Gu et al., "Preserving Linear Separability in Continual Learning by Backward Feature Projection", CVPR 2023, arXiv
    2303.14595: the distance of the mapped new features to the old ones, in the norm and unit of their code. The maps
    are not trained through the loss: ``slopes`` says how they should move.

    Args:
        targets: of all layers.
        maps: of each layer that has targets.
        task_B: whose map a sample takes.
    """

    def __init__(self, targets: Sequence[RowTarget], maps: Mapping[int, HeadMaps], task_B: Tensor) -> None:
        super().__init__(targets)
        self.maps, self.task_B = maps, task_B
        self._found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def compare(self, call: AttentionCall, output_BLHD: Tensor, target: RowTarget) -> Tensor:
        """The layer's weighted distance."""
        # Mixed precision would round the products, which are close to what they are compared with.
        with torch.autocast(output_BLHD.device.type, enabled=False):
            return self._distance(call, output_BLHD, target)

    def _distance(self, call: AttentionCall, output_BLHD: Tensor, target: RowTarget) -> Tensor:
        now_PRD, then_PRD = _outputs(output_BLHD, target)
        index, maps = target.index, self.maps[call.layer]
        slot_P = maps.slot_TH[self.task_B[index.sample_P], index.head_P]
        off_PRD = now_PRD @ maps.matrix_KDD[slot_P].to(now_PRD.dtype).mT - then_PRD
        distance_PR = torch.linalg.vector_norm(off_PRD, dim=-1)
        unit = now_PRD.shape[-1] ** -0.5
        with torch.no_grad():
            real_PR1 = (target.weight_PR > 0)[..., None]
            slope_PRD = unit * real_PR1 * off_PRD / distance_PR.clamp_min(torch.finfo(off_PRD.dtype).tiny)[..., None]
            # A product and not a sum by index, whose order a GPU does not keep.
            own_KP = (slot_P == torch.arange(len(maps.matrix_KDD), device=slot_P.device)[:, None]).to(slope_PRD.dtype)
            sum_KDD = torch.einsum("kp,pdr,pre->kde", own_KP, slope_PRD.mT, now_PRD)
            # Layers that checkpointing runs again say the same again.
            self._found[call.layer, id(target)] = sum_KDD, own_KP @ real_PR1.sum((1, 2)).to(own_KP.dtype)
        return unit * (target.weight_PR * distance_PR).sum()

    def slopes(self) -> dict[int, tuple[Tensor, Tensor]]:
        """After a forward pass: each map's gradient of the distance, summed over its rows, and how many these are.

        Returns:
            ``{layer: [K, D, D], [K]}``.
        """
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for (layer, _), (sum_KDD, count_K) in self._found.items():
            former = found.get(layer)
            found[layer] = (sum_KDD, count_K) if former is None else (former[0] + sum_KDD, former[1] + count_K)
        return found


class DistillRelations(DistillRows):
    """Holds how far the heads' outputs at a sample's queries lie from one another, up to a common factor.

    Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068, the distance-wise loss: Huber's loss
    of all pairs' distances, each divided by the mean distance. Points are queries of one sample and head.
    """

    def compare(self, call: AttentionCall, output_BLHD: Tensor, target: RowTarget) -> Tensor:
        """The layer's weighted loss."""
        now_PRD, then_PRD = _outputs(output_BLHD, target)
        real_PR = target.weight_PR > 0
        pair_PRR = real_PR[:, :, None] & real_PR[:, None, :]
        pair_PRR = pair_PRR & ~torch.eye(real_PR.shape[1], dtype=torch.bool, device=pair_PRR.device)
        count_P = pair_PRR.sum((1, 2)).clamp_min(1)
        now_PRR, then_PRR = (_relative_distances(points_PRD, pair_PRR) for points_PRD in (now_PRD, then_PRD))
        loss_PRR = torch.nn.functional.huber_loss(now_PRR, then_PRR, reduction="none")
        return (target.weight_PR.sum(1) * (loss_PRR * pair_PRR).sum((1, 2)) / count_P).sum()


def _outputs(output_BLHD: Tensor, target: RowTarget) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's outputs [P, R, D], at least float32."""
    index, teacher = target.index, target.teacher
    now_PRD = output_BLHD[index.sample_P[:, None], index.query_PR, index.head_P[:, None]]
    now_PRD = now_PRD.to(torch.promote_types(now_PRD.dtype, torch.float32))
    then_PRD: Any = teacher.out_PRD  # type: ignore[attr-defined]
    # Layers whose heads are smaller than others' are stored with zeros behind them.
    return now_PRD, then_PRD[..., : now_PRD.shape[-1]].to(now_PRD.dtype)


def _relative_distances(points_PRD: Tensor, pair_PRR: Tensor) -> Tensor:
    # The faster way through a matrix product loses small distances to rounding.
    distance_PRR = torch.cdist(points_PRD, points_PRD, compute_mode="donot_use_mm_for_euclid_dist")
    mean_P = (distance_PRR * pair_PRR).sum((1, 2)) / pair_PRR.sum((1, 2)).clamp_min(1)
    return distance_PRR / mean_P.clamp_min(torch.finfo(distance_PRR.dtype).tiny)[:, None, None]
