"""PyTorch's global settings: the library works by its own and leaves the caller's alone, in threads too."""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

_lock = threading.RLock()
_inside = 0
_dtype_before: torch.dtype = torch.float32
_threads_asked = 0
_threads_before = 1


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Single precision, the CPU and gradients as defaults within, whatever the caller has set.

    The default type of numbers is one for all threads: it is put back when the last one has left.
    """
    global _inside, _dtype_before
    with _lock:
        if not _inside:
            _dtype_before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _inside += 1
    try:
        # A default device costs a little in every call, so it is only overridden where there is one.
        elsewhere = torch.get_default_device().type != "cpu"
        with torch.device("cpu") if elsewhere else contextlib.nullcontext(), torch.enable_grad():
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.set_default_dtype(_dtype_before)


def with_own_settings(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, run within :func:`own_settings`."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with own_settings():
            return method(*args, **kwargs)

    return wrapped


def keeping_own_settings(cls: type) -> type:
    """The class, with every public method that it defines run within :func:`own_settings`."""
    for name, value in list(vars(cls).items()):
        if isinstance(value, types.FunctionType) and not name.startswith("_"):
            setattr(cls, name, with_own_settings(value))
    return cls


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's global random numbers start from this seed within, and go on as if nothing had been afterwards.

    Networks are initialised by them. One thread at a time is within, or seeds would mean nothing.
    """
    with _lock, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def using_threads(n: int) -> Iterator[None]:
    """So many PyTorch threads within; as many as before when the last of the caller's threads has left."""
    global _threads_asked, _threads_before
    with _lock:
        if not _threads_asked:
            _threads_before = torch.get_num_threads()
        _threads_asked += 1
        torch.set_num_threads(n)
    try:
        yield
    finally:
        with _lock:
            _threads_asked -= 1
            if not _threads_asked:
                torch.set_num_threads(_threads_before)
