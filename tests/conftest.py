"""Every test starts from the same seed and runs on one thread: the same numbers on every machine's cores."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
