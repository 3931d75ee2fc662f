"""Multi-task training on all tasks at once: the upper bound, for which nothing may be forgotten or thrown away."""

from seekr_cl.methods.base import Method, Paper


class MultiTask(Method):
    """L = L_task over the union of the stream's training examples, each for its own task's epochs."""

    name = "multitask"
    paper = Paper("Multitask Learning", "Caruana, 1997", "https://doi.org/10.1023/A:1007379606734")
    multi_task = True
