"""Docstrings of public names say what numpydoc asks for: parameters, what is returned, an example."""

import inspect
from importlib import import_module

import pytest
from numpydoc.validate import validate

import vaeimpute

MODULES = ["vaeimpute.amputation", "vaeimpute.metrics", "vaeimpute.pooling"]
NOT_ASKED_FOR = {
    "GL01",  # up to numpydoc 1.10: a summary on the line after the quotes; ruff has it on theirs
    "ES01",  # an extended summary: one line can say it all
    "SA01",  # See Also: what is related stands on the same page
    "RT02",  # a returned value may have a name before its type, as in scikit-learn
    "SS05",  # verbs that end in "s": meant are plurals, as in "Names of the columns"
}


def public_names():
    """Dotted names of estimators, of the public methods that we define (once, if both have it), and of functions."""
    seen = set()
    for name in vaeimpute.__all__:
        if not inspect.isclass(estimator := getattr(vaeimpute, name)):
            continue
        yield f"vaeimpute.{name}"
        for method, found in inspect.getmembers(estimator, inspect.isroutine):
            function = getattr(found, "__func__", found)  # of a class method
            if not method.startswith("_") and function.__module__.startswith("vaeimpute") and function not in seen:
                seen.add(function)
                yield f"vaeimpute.{name}.{method}"
    for module in map(import_module, MODULES):
        yield from (f"{module.__name__}.{name}" for name in module.__all__ if callable(getattr(module, name)))


NAMES = list(public_names())


@pytest.mark.parametrize("name", NAMES)
def test_docstring(name):
    problems = [f"{code}: {problem}" for code, problem in validate(name)["errors"] if code not in NOT_ASKED_FOR]
    assert not problems, "\n".join([name, *problems])


def test_public_names_are_found():
    assert {"vaeimpute.VAEImputer.fit", "vaeimpute.VAEOutlierDetector.fit", "vaeimpute.metrics.nrmse"} < {*NAMES}
    assert "vaeimpute.VAEImputer.get_params" not in NAMES
