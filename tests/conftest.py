"""Options and skips for the whole suite: ``pytest --device cuda``, and no GPU test where there is no GPU."""

import os

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)  # the same examples in every run
settings.load_profile("repeatable")

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: two threads beside another process wait for each other
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where tests that use the `device` fixture run: cpu, cuda")


@pytest.fixture
def device(request):
    return request.config.getoption("--device")


@pytest.fixture(scope="module")
def short():
    """Trainings on images that take a few seconds, a detector's too: the defaults, cut down."""
    from dataclasses import replace

    from vaeimpute.images import defaults
    from vaeimpute.training.schedule import shortened

    schedule, sizes = defaults.schedule, defaults.sizes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "schedule", lambda *args: shortened([schedule(*args)], 20)[0])
        patch.setattr(defaults, "sizes", lambda *args, **named: replace(sizes(*args, **named), widths=(16, 16)))
        yield


def pytest_collection_modifyitems(config, items):
    if any("far" in getattr(item, "fixturenames", ()) for item in items):
        from far_device import register

        register()
    needs_gpu = [item for item in items if "gpu" in item.keywords]
    if not needs_gpu:
        return
    import torch  # here, so that a run without GPU tests does not pay for it

    if not torch.cuda.is_available():
        for item in needs_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
