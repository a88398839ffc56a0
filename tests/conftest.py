"""Every test starts from the same seed; a worker has one thread unless THALWEG_TEST_THREADS says otherwise."""

import os

N_THREADS = int(os.environ.get("THALWEG_TEST_THREADS", "1"))
# Before PyTorch starts its pools of threads.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = str(N_THREADS)
os.environ["COLUMNS"] = "160"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(N_THREADS)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.set_num_threads(N_THREADS)
    torch.manual_seed(0)


@pytest.fixture
def call():
    """Call the command in this process."""
    import command

    return command.call
