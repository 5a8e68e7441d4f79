"""The settings, and how they are read. Imports no other package: `wiring` maps each section to the limits of its package.

`sections` defines the settings and their defaults. `reading` collects them from file, environment and flags, and refuses
unknown ones. `config/gateway.toml` is the reference for operators.
"""

from gateway.config.reading import ConfigError, load
from gateway.config.sections import Config

__all__ = ["Config", "ConfigError", "load"]
