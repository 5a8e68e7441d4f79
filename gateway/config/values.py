"""The types of settings, and the base class of sections.

An empty string means "not set", since TOML has no null. Fields made by `secret()` are read from the environment only: a
configuration file would expose them in backups and reviews.
"""

import ipaddress
import math
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

KIB, MIB = 1024, 1024 * 1024

SECRET = "secret"
"""Marks a field that must not be in the file, see `secret`."""


def secret() -> Any:  # Any, as pydantic's Field returns it: the field's own annotation is its type
    """Declare a field for a secret: environment only, never printed."""
    return Field(default=None, json_schema_extra={SECRET: True}, repr=False)


def refusal(field: str, said: str) -> PydanticCustomError:
    """Return the error of a rule about several fields. It names one of them, so that its source can be shown."""
    return PydanticCustomError("setting", "{said}", {"said": said, "field": field})


def require_pair(section: "Section", first: str, second: str) -> None:
    """Require that both of two fields are set, or neither."""
    for one, other in ((first, second), (second, first)):
        if getattr(section, one) is not None and getattr(section, other) is None:
            raise refusal(one, f"is set without {other}; set both or neither")


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def http_url(value: str) -> str:
    """Return an http:// or https:// URL without a slash at its end."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must not contain a user, password, query or fragment")
    return value.rstrip("/")


def _host(value: str) -> str:
    if value.startswith("["):
        raise ValueError("must be an address without brackets, such as ::1")
    if ":" in value:
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise ValueError("must be a host name or an address, without a port") from None
    return value


def _proxy_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("must be an http:// URL: the proxy is used with CONNECT")
    return value


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\s*]+", value):
        raise ValueError('must be "*" or scheme://host[:port] without a path, as a browser sends it')
    return value


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value.lower()):
        raise ValueError("must be a SHA-256 in 64 hexadecimal digits; `gateway keygen` prints one")
    return value.lower()


OptionalPath = Annotated[Path | None, BeforeValidator(_none_if_empty)]
OptionalText = Annotated[str | None, BeforeValidator(_none_if_empty)]
OptionalUrl = Annotated[
    Annotated[str, AfterValidator(http_url)] | None,
    BeforeValidator(_none_if_empty),
]
OptionalProxy = Annotated[
    Annotated[str, AfterValidator(_proxy_url)] | None,
    BeforeValidator(_none_if_empty),
]
Host = Annotated[str, AfterValidator(_host)]
Origin = Annotated[str, AfterValidator(_origin)]
Sha256 = Annotated[str, AfterValidator(_sha256)]
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Dollars = Annotated[float, Field(gt=0), AfterValidator(_finite)]
Seconds = Annotated[float, Field(gt=0, le=86_400), AfterValidator(_finite)]
SecondsOrNever = Annotated[float, Field(ge=0), AfterValidator(_finite)]
"""0 for never."""


class Section(BaseModel):
    """The base class of sections: frozen, without undeclared fields."""

    # TOML can write inf and nan; no number here has a meaning for them.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_one(cls, value: object, info: ValidationInfo) -> object:
        """Refuse `true` and `false` for other values, since pydantic reads them as the numbers 1 and 0."""
        name = info.field_name
        if isinstance(value, bool) and name is not None and cls.model_fields[name].annotation is not bool:
            raise ValueError("must not be true or false")
        return value
