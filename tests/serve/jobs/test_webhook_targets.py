"""Which URLs events may go to."""

import pytest

from cosmos3_models import InvalidInput
from serve.jobs.webhooks.targets import Targets, check_target

LISTED = ("https://hooks.example.com", "https://other.example.com:8443/cosmos3/", "http://127.0.0.1:9000")

ALLOWED = [
    "https://hooks.example.com",
    "https://hooks.example.com/",
    "https://HOOKS.example.com:443/any/path?token=a%20b&x=1",
    "https://other.example.com:8443/cosmos3",
    "https://other.example.com:8443/cosmos3/job//1",
    "http://127.0.0.1:9000/x",
]
NOT_LISTED = [
    "http://hooks.example.com/",
    "https://hooks.example.com:8443/",
    "https://hooks.example.com.evil.org/",
    "https://hooks.example.com./",
    "https://evil.org/hooks.example.com",
    "https://evil.org/?https://hooks.example.com/",
    "https://example.com/",
    "https://x.hooks.example.com/",
    "https://other.example.com:8443/",
    "https://other.example.com:8443/cosmos3x",
    "https://other.example.com:8443/Cosmos3",
    "https://other.example.com/cosmos3",
    "http://127.0.0.1:9001/",
    "http://2130706433:9000/",
]
MALFORMED = [
    "",
    "hooks.example.com",
    "ftp://hooks.example.com/",
    "https:/hooks.example.com/",
    "HTTPS://hooks.example.com/",
    "https://user@hooks.example.com/",
    "https://hooks.example.com@evil.org/",
    "https://hooks.example.com:443@evil.org/",
    "https://hooks.example.com:0/",
    "https://hooks.example.com:99999/",
    "https://hooks.example.com:/",
    "https://hooks.example.com/#x",
    "https://hooks.example.com\\@evil.org/",
    "https://hooks.example.com/\n",
    " https://hooks.example.com/",
    "https://hooks.example.com/a b",
    "https://hook\u017f.example.com/",
    "https://other.example.com:8443/cosmos3/../admin",
    "https://other.example.com:8443/cosmos3/%2e%2E/admin",
    "https://other.example.com:8443/cosmos3/..%2fadmin",
    "https://other.example.com:8443/cosmos3/%5c..%5cadmin",
    "https://hooks.example.com/" + "x" * 2048,
]


@pytest.mark.parametrize("url", ALLOWED)
def test_a_url_below_a_listed_one_is_allowed(url: str) -> None:
    Targets(LISTED).check(url)
    assert Targets(LISTED).allow(url)


@pytest.mark.parametrize("url", NOT_LISTED)
def test_any_other_url_is_refused(url: str) -> None:
    assert not Targets(LISTED).allow(url)
    with pytest.raises(InvalidInput, match="expected a URL below one of the webhook_targets of this server"):
        Targets(LISTED).check(url)


@pytest.mark.parametrize("url", MALFORMED)
def test_a_url_that_could_be_read_in_two_ways_is_refused(url: str) -> None:
    assert not Targets(LISTED).allow(url)
    with pytest.raises(InvalidInput, match=r"webhook_url: got .*, expected (an http or https URL|a port)"):
        Targets(LISTED).check(url)
    with pytest.raises(ValueError, match="expected"):
        check_target(url)


def test_a_refusal_does_not_repeat_the_query() -> None:
    with pytest.raises(InvalidInput) as error:
        Targets(LISTED).check("https://evil.org/?token=hunter2")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("url", LISTED)
def test_an_entry_of_the_list_is_a_url_without_a_query(url: str) -> None:
    assert check_target(url) == url
    with pytest.raises(ValueError, match="expected a URL without a query"):
        check_target(f"{url}?x=1")
