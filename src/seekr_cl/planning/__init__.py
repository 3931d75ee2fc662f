"""What learning with a memory costs, from a model's config alone: bytes, RAM, VRAM, steps, time."""

from seekr_cl.planning.plan import Plan, make_plan
from seekr_cl.planning.shape import ModelShape, adapter_size, read_shape
from seekr_cl.planning.workload import Workload

__all__ = ["ModelShape", "Plan", "Workload", "adapter_size", "make_plan", "read_shape"]
