"""The price list: config/prices.toml, or the file that `upstream.prices_file` names."""

import datetime
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from gateway.config.files import read_toml
from gateway.config.problems import plain
from gateway.config.reading import ConfigError
from gateway.config.values import Section

Dollars = Annotated[float, Field(ge=0, lt=1_000_000, allow_inf_nan=False)]


class TokenPrices(Section):
    """Dollars per million tokens of each kind. A missing kind has no price."""

    text: Dollars | None = None
    audio: Dollars | None = None
    image: Dollars | None = None


class Model(Section):
    """One model's prices."""

    input: TokenPrices = TokenPrices()
    cached: TokenPrices = TokenPrices()
    output: TokenPrices = TokenPrices()
    minute: Dollars | None = None


class Prices(Section):
    """The whole list."""

    date: datetime.date
    models: dict[str, Model]


def own_prices_file() -> Path:
    """Return the gateway's own list: next to this module in an installed package, else in the checkout."""
    installed = Path(__file__).with_name(_NAME)
    return installed if installed.exists() else Path(__file__).parents[2] / "config" / _NAME


_NAME: Final = "prices.toml"


def price_list(file: Path | None) -> Prices:
    """Read the list from `file`, or the gateway's own. Raises ConfigError."""
    found = read_toml("upstream.prices_file", file or own_prices_file())
    try:
        return Prices.model_validate(found)
    except ValidationError as error:
        where = f"upstream.prices_file: {file}"
        problems = [
            f"{where}: {'.'.join(map(str, details['loc']))}: {plain(details)}" for details in error.errors()
        ]
        raise ConfigError(problems) from None
