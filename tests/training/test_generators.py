"""Every generator goes on where it was: draws after a checkpoint are those that would have come."""

import json
import random

import numpy
import torch

from seekr_cl.training.trainer_state import put_rng, take_rng


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), numpy.random.rand(), numpy.random.randn(), float(torch.rand(()))]


def test_all_generators_go_on() -> None:
    # One half of a pair of normal draws is held back by python's and by numpy's generator.
    random.gauss(0, 1)
    numpy.random.randn()
    tensors, content = take_rng()
    content = json.loads(json.dumps(content))
    expected = draws()
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    other = draws()
    put_rng(tensors, content)
    assert draws() == expected
    assert not set(other) & set(expected)
