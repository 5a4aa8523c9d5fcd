"""What several tests of the estimators start from: one fit for each kind of table, and work that must not begin."""

from dataclasses import replace

import pytest
from containers import GOOD, TABLES

from vaeimpute import VAEImputer
from vaeimpute.estimators import _domains


@pytest.fixture(params=TABLES, ids=lambda make: make.__name__)
def make(request):
    """A function that makes a table, of each kind."""
    return request.param


@pytest.fixture(scope="session")
def fits():
    """One fit for each kind of table: none may change them."""
    return {make: VAEImputer(random_state=0).fit(make()) for make in TABLES}


@pytest.fixture(scope="session")
def good():
    return VAEImputer(random_state=0).fit(GOOD)


@pytest.fixture
def replace_fits(monkeypatch):
    """Put other functions in the place of the fits of all modalities."""

    def replaced(change):
        domains = [
            replace(domain, fit_imputer=change(domain.fit_imputer), fit_detector=change(domain.fit_detector))
            for domain in _domains.DOMAINS
        ]
        monkeypatch.setattr(_domains, "DOMAINS", domains)

    return replaced
