"""The golden numbers were made with one thread; tiny tensors are also fastest that way."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)
