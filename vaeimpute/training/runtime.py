"""How an estimator runs its core: on which device, from which seed, how often, and what is shown meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

OnCheck = Callable[[str, dict, int], None]


def resolve_device(device: str | torch.device, *, or_cpu: bool = False) -> torch.device:
    """The device by name, tried out; "auto" takes a GPU if there is one.

    Parameters
    ----------
    device : str or torch.device
    or_cpu : bool
        Take the CPU where the device cannot be used, instead of raising ValueError.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    >>> resolve_device("abacus")
    Traceback (most recent call last):
    ValueError: device='abacus' cannot be used here: ... Use device='auto'.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=chosen).item()  # the linear model needs doubles
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # what PyTorch raises for these
        if or_cpu:
            return torch.device("cpu")
        why = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise ValueError(f"device={str(device)!r} cannot be used here: {why}. Use device='auto'.") from error
    return chosen


def draw_seed(random_state: Any) -> int:
    """One seed from a random state.

    None takes fresh entropy: NumPy's global generator belongs to the user, and is neither read nor moved.
    """
    rng = np.random.RandomState() if random_state is None else check_random_state(random_state)
    return int(rng.randint(np.iinfo(np.int32).max))


@contextmanager
def progress(verbose: int) -> Iterator[OnCheck]:
    """Show the checks of a fit: a rich progress bar where rich is installed, lines on stderr otherwise, or nothing."""
    if not verbose:
        yield lambda reading, record, n_steps: None
        return
    if find_spec("rich") is None:
        yield _log
        return
    from rich.progress import Progress

    with Progress() as bar:
        tasks: dict[str, Any] = {}

        def on_check(reading: str, record: dict, n_steps: int) -> None:
            if reading not in tasks:
                tasks[reading] = bar.add_task(reading, total=n_steps)
            bar.update(tasks[reading], completed=record["step"], description=f"{reading}: error {record['error']:.4f}")

        yield on_check


def _log(reading: str, record: dict, n_steps: int) -> None:
    step, error, seconds = record["step"], record["error"], record["seconds"]
    print(f"{reading}: step {step} of {n_steps}, held-out error {error:.4f}, {seconds:.1f} s", file=sys.stderr)


def positive(name: str, value: Any) -> int:
    """The value, if it is a positive integer."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)
