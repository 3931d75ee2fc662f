from tiny_models import exact_softmax

__all__ = ["exact_softmax"]
