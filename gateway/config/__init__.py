"""What an operator may set, and how a setting is found. Knows no room: `app` maps each section onto its room's values.

`sections` says what can be set, each default with its reason; `reading` gathers the settings from file, environment and
flags, and refuses what it does not know. `config/gateway.toml` is the reference for people.
"""

from gateway.config.reading import ConfigError, load
from gateway.config.sections import Config

__all__ = ["Config", "ConfigError", "load"]
