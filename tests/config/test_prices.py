"""The price list: the gateway's own, an operator's, and errors in one."""

import re
import tomllib
from pathlib import Path

import pytest

from gateway.config import Config, ConfigError
from gateway.config.prices import own_prices_file, price_list
from gateway.config.sections import Upstream
from gateway.relay.usage import PICODOLLARS
from gateway.wiring import prices


def configured(file: Path, text: str) -> Config:
    """Return a configuration that names a price list with this text."""
    file.write_text(text, encoding="utf-8")
    return Config(upstream=Upstream(prices_file=file))


def test_own_list_prices_the_default_model() -> None:
    """4 dollars per million tokens are 4,000,000 picodollars per token; transcription is priced by the minute."""
    found = prices(Config())
    model = found.of(str(Config().upstream.session["model"]))

    assert model.tokens["input", "text"] == 4_000_000
    assert model.tokens["output", "audio"] == 64_000_000
    assert found.of("gpt-realtime-whisper").minute == 17 * PICODOLLARS // 1000
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.date)


def test_own_list_names_a_source_for_each_model() -> None:
    """Each model's table begins with a comment that names the source of its prices."""
    text = own_prices_file().read_text(encoding="utf-8")

    sourced = re.findall(r'^\[models\."(.+)"\]\n# Source: \S', text, re.MULTILINE)
    assert sourced == list(tomllib.loads(text)["models"])


def test_a_list_of_ones_own_replaces_it_whole(tmp_path: Path) -> None:
    """An operator's list replaces the whole built-in one: a model that it does not name has no price."""
    text = "date = 2026-12-01\n[models.mine]\ninput = { text = 0.055 }\n"
    found = prices(configured(tmp_path / "mine.toml", text))

    assert (found.date, found.of("mine").tokens) == ("2026-12-01", {("input", "text"): 55_000})
    assert found.of("gpt-realtime-2.1").tokens == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("date = ", "not valid TOML"),
        ("[models]", "date"),
        ('date = "2026-12-01"\n[models.m]\ninput = { text = -1 }', "models.m.input.text"),
        ('date = "2026-12-01"\n[models.m]\ninput = { txet = 1 }', "models.m.input.txet"),
        ('date = "2026-12-01"\n[models.m]\nminute = nan', "models.m.minute"),
        ('date = "lately"\n[models]', "date"),
    ],
)
def test_a_wrong_list_is_refused_by_its_member(tmp_path: Path, text: str, said: str) -> None:
    """An error in the list is refused at start and names the member, because a misspelt kind would have no price."""
    config = configured(tmp_path / "mine.toml", text)
    with pytest.raises(ConfigError) as refused:
        price_list(config.upstream.prices_file)

    assert "upstream.prices_file" in str(refused.value)
    assert said in str(refused.value)


def test_a_list_that_is_missing_is_refused(tmp_path: Path) -> None:
    """A missing list is refused, and the message names the setting."""
    with pytest.raises(ConfigError, match=r"upstream\.prices_file: .*cannot be read"):
        price_list(tmp_path / "none.toml")
