"""The former place of ``seekr_cl.models.loading``, which scripts may still name."""

from seekr_cl.models.loading import load_model, pad_id, save_model

__all__ = ["load_model", "pad_id", "save_model"]
