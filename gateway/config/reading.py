"""Reads the settings from defaults < file < environment < flags, and says exactly what is wrong with them.

Knows no section by name. Refuses unknown keys and suggests the nearest existing one, because an ignored misspelt limit
would be noticed only when it is needed.
"""

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError
from pydantic_settings.sources.utils import parse_env_vars

from gateway.config.problems import causes, plain
from gateway.config.sections import SESSION_TEMPLATE, Config
from gateway.config.values import SECRET, Section

PREFIX = "GATEWAY_"
FILE_VARIABLE = "GATEWAY_CONFIG"

Tree = dict[str, Any]  # as TOML and JSON parsers return it; validated against the sections afterwards


class ConfigError(Exception):
    """The configuration cannot be used. `problems` holds one sentence each, for the person who wrote it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def load(
    file: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Mapping[str, object]] | None = None,
) -> Config:
    """Read the configuration.

    `file` defaults to the one that GATEWAY_CONFIG names, if any; `flags` maps sections to keys and values. OPENAI_API_KEY
    is the gateway's own key unless a key or its file is configured. Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    if file is None and environ.get(FILE_VARIABLE):
        file = Path(environ[FILE_VARIABLE])
    from_file = _read_file(file) if file else {}
    sources = {
        "default": {"upstream": {"session": SESSION_TEMPLATE}},
        f"file {file}": from_file,
        "environment": _read_environment(environ),
        "command line": {name: dict(section) for name, section in (flags or {}).items()},
    }
    problems = [*_secrets_in_file(from_file, Config), *_unknown_names(environ)]
    merged: Tree = {}
    for tree in sources.values():
        merged = _merge(merged, tree)
    merged = _with_usual_key(merged, environ)
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        problems += [_explain(details, sources) for details in causes(error.errors())]
        raise ConfigError(_unique(problems)) from None
    if problems:
        raise ConfigError(_unique(problems))
    return config


def keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every setting; for elements of a list, `list[].key`."""
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is None:
            yield prefix + name
        elif isinstance(field.annotation, type):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name
            yield from keys(inner, f"{prefix}{name}[].")


def _read_file(file: Path) -> Tree:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # tomllib's message for `keys = []` above [[access.keys]], which the reference file has and comments on.
        twice = "; delete the line `… = []` of that list" if "immutable namespace" in str(error) else ""
        raise ConfigError([f"{file}: not valid TOML: {error}{twice}"]) from error


def _with_usual_key(merged: Tree, environ: Mapping[str, str]) -> Tree:
    """Use OPENAI_API_KEY, which every OpenAI tool reads, unless the gateway's own settings name a key."""
    key, upstream = environ.get("OPENAI_API_KEY"), merged["upstream"]
    if not key or not isinstance(upstream, dict) or upstream.get("api_key") or upstream.get("api_key_file"):
        return merged
    return _merge(merged, {"upstream": {"api_key": key}})


class _Settings(BaseSettings, Config):  # type: ignore[misc]  # both configs are dicts; the sections' one stands last
    """The sections in the form that pydantic-settings requires."""


def _read_environment(environ: Mapping[str, str]) -> Tree:
    """Read GATEWAY_<SECTION>__<KEY>. Names without `__` belong to others (Kubernetes injects GATEWAY_PORT, for example)."""
    named = {name: value for name, value in environ.items() if name.startswith(PREFIX) and "__" in name}
    tree: Tree = {}
    for name, value in sorted(named.items()):
        # One at a time, so that an error can name its variable.
        source = EnvSettingsSource(
            _Settings,
            case_sensitive=False,
            env_prefix=PREFIX,
            env_nested_delimiter="__",
            env_ignore_empty=False,
        )
        source.env_vars = parse_env_vars({name: value}, case_sensitive=False)
        try:
            tree = _merge(tree, source())
        except SettingsError:
            raise ConfigError([f'{name}: expected JSON, such as ["a", "b"]']) from None
    session = tree.get("upstream", {}).get("session")
    if isinstance(session, dict):
        tree["upstream"]["session"] = {name: _as_json(value) for name, value in session.items()}
    return tree


def _as_json(value: object) -> object:
    """Read a member of OpenAI's session object, whose types are unknown here: JSON if it parses, else a string."""
    if isinstance(value, dict):
        return {name: _as_json(member) for name, member in value.items()}
    try:
        return json.loads(value, parse_constant=_no_number) if isinstance(value, str) else value
    except ValueError:
        return value


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"JSON has no {word}")


def _unknown_names(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a problem for each variable of an unknown section, which pydantic-settings would ignore."""
    for name in sorted(environ):
        section, separator, _ = name.removeprefix(PREFIX).partition("__")
        if not (name.startswith(PREFIX) and separator) or section.lower() in Config.model_fields:
            continue
        near = difflib.get_close_matches(section.lower(), Config.model_fields, n=1)
        hint = f"did you mean {PREFIX}{near[0].upper()}__…?" if near else _expected(Config)
        yield f"{name}: unknown section {section.lower()!r}; {hint}"


def ignored_names(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each variable that has one underscore too few, such as GATEWAY_LOG_LEVEL, and the name that sets the key.

    They are no errors: Kubernetes injects GATEWAY_SERVER_PORT for a service with the name gateway-server.
    """
    for key in keys():
        name = PREFIX + key.replace(".", "_").upper()
        if not environ.get(name, "tcp://").startswith("tcp://"):
            yield name, PREFIX + key.replace(".", "__").upper()


def _secrets_in_file(tree: Tree, section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield a problem for each secret in the file."""
    for name, field in section.model_fields.items():
        if name not in tree:
            continue
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get(SECRET):
            where = f"{prefix}{name}"
            yield f"{where}: a secret does not belong in the file; name its file in {where}_file, or set it in the environment"
        inner = _section_in(field.annotation)
        if inner is not None:
            value = tree[name]
            for below in value if isinstance(value, list) else [value]:
                if isinstance(below, dict):
                    yield from _secrets_in_file(below, inner, f"{prefix}{name}.")


def _merge(below: Tree, above: Tree) -> Tree:
    """Merge `above` into `below`: tables are merged, other values replaced."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _explain(details: ErrorDetails, sources: Mapping[str, Tree]) -> str:
    """Say where a value comes from and what was expected, and for an unknown key name the nearest one."""
    path = [part for part in details["loc"] if not (isinstance(part, str) and part in _UNION_STEPS)]
    field = details.get("ctx", {}).get("field")
    if isinstance(field, str):
        path += field.split(".")
    where = ".".join(map(str, path))
    origin = _origin(path, sources)
    if details["type"] == "extra_forbidden":
        return f"{where} ({origin}): unknown key; {_nearest(path)}"
    return f"{where} ({origin}): {plain(details)}"


_UNION_STEPS = frozenset({"function-after[http_url(), str]", "function-after[_proxy_url(), str]"})
"""Steps that pydantic adds to an error's path for a union type; they are not keys."""


def _origin(path: list[int | str], sources: Mapping[str, Tree]) -> str:
    for origin, tree in reversed(list(sources.items())):
        found: Any = tree  # a step of the walk, of any type
        for part in path:
            try:
                found = found[part]
            except (KeyError, IndexError, TypeError):
                break
        else:
            if origin == "environment":
                # Elements of a list are in the same variable as the list.
                names = takewhile(lambda part: isinstance(part, str), path)
                return f"environment {PREFIX}{'__'.join(str(name).upper() for name in names)}"
            return origin
    return "default"


def _nearest(path: list[int | str]) -> str:
    """Suggest a key: a similar one of the same section, or the same name in another section."""
    section: type[Section] = Config
    for part in path[:-1]:
        if isinstance(part, str):
            section = _section_in(section.model_fields[part].annotation) or section
    name = str(path[-1])
    near = difflib.get_close_matches(name, section.model_fields, n=1, cutoff=0.6)
    if near:
        return f"did you mean {'.'.join(str(part) for part in [*path[:-1], near[0]])}?"
    elsewhere = [key for key in keys() if key.rpartition(".")[2] == name]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    return _expected(section)


def _expected(section: type[Section]) -> str:
    return "expected one of: " + ", ".join(section.model_fields)


def _section_in(annotation: Any) -> type[Section] | None:  # Any: an annotation is a type, a union or an alias
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in get_args(annotation):
        if (inner := _section_in(argument)) is not None:
            return inner
    return None


def _unique(problems: list[str]) -> list[str]:
    return list(dict.fromkeys(problems))
