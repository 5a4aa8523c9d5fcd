"""Where and from which seed a fit runs, and what is shown meanwhile: device, generators, progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

OnEvaluation = Callable[[str, dict, int], None]  # model, newest record of its history, number of its steps


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


def make_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own on a device: PyTorch's global ones are neither read nor moved, and threads do not meet.

    Parameters
    ----------
    seed : int
    device : torch.device or str, default="cpu"

    Examples
    --------
    >>> one, other = make_generator(0), make_generator(0)
    >>> bool(torch.rand(3, generator=one).equal(torch.rand(3, generator=other)))
    True
    """
    return torch.Generator(device=device).manual_seed(seed)


@contextmanager
def progress(verbose: int) -> Iterator[OnEvaluation]:
    """Show the evaluations of a fit: a bar where rich is installed, lines on stderr otherwise, or nothing."""
    if not verbose:
        yield lambda model, record, n_steps: None
        return
    if find_spec("rich") is None:
        yield _log
        return
    from rich.progress import Progress

    with Progress() as bar:
        tasks: dict[str, Any] = {}

        def on_evaluation(model: str, record: dict, n_steps: int) -> None:
            if model not in tasks:
                tasks[model] = bar.add_task(model, total=n_steps)
            bar.update(tasks[model], completed=record["step"], description=f"{model}: error {record['error']:.4f}")

        yield on_evaluation


def _log(model: str, record: dict, n_steps: int) -> None:
    step, error, seconds = record["step"], record["error"], record["seconds"]
    sys.stderr.write(f"{model}: step {step} of {n_steps}, held-out error {error:.4f}, {seconds:.1f} s\n")
