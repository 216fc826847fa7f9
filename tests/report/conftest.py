"""One browser for all pages of reports: to start it takes longer than to look at one."""

import pytest

from clipbias.explain.results import save_results
from clipbias.report import write_report
from tests.browser import Browser
from tests.report.exploring import only_explored, unfold


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    opened_browser = Browser(tmp_path_factory.mktemp("profile"))
    yield opened_browser
    opened_browser.close()


@pytest.fixture
def opened(browser, page):
    browser.complaints.clear()
    browser.open(page)
    unfold(browser)
    yield browser
    assert browser.complaints == []


@pytest.fixture(scope="session")
def explored():
    """Results; not to be changed."""
    return only_explored()


@pytest.fixture(scope="session")
def page(explored, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explored")
    save_results(folder, explored)
    return write_report(folder, folder / "report")
