"""`cluster.url` in all its forms."""

import pytest

from gateway.cluster.settings import Target


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("redis://one", Target("single", (("one", 6379),))),
        ("redis://one:7000/3", Target("single", (("one", 7000),), db=3)),
        ("rediss://[::1]:7000", Target("single", (("::1", 7000),), tls=True)),
        ("unix:///run/redis.sock?db=2", Target("single", unix_path="/run/redis.sock", db=2)),
        (
            "redis+sentinel://a,b:26380/main/1",
            Target("sentinel", (("a", 26379), ("b", 26380)), db=1, service="main"),
        ),
        ("rediss+cluster://a:1,b:2", Target("cluster", (("a", 1), ("b", 2)), tls=True)),
    ],
)
def test_url_is_read(url: str, target: Target) -> None:
    """Every form that the configuration takes is understood."""
    assert Target.parse(url) == target


@pytest.mark.parametrize("url", ["http://one", "redis://a:b:c"])
def test_other_urls_are_refused(url: str) -> None:
    """Anything that is not an address of Redis is an error."""
    with pytest.raises(ValueError, match="not"):
        Target.parse(url)
