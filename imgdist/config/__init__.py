"""Configuration of the two daemons: one TOML file each, the same keys as the command line's flags.

Order of precedence: flag, `--set section.key=value`, file, default. A key that does not exist or a value that is not
allowed is refused when the daemon starts, naming file, key, value and what is allowed.
"""

from imgdist.config.agent import AgentConfig
from imgdist.config.describe import keys, toml, toml_value
from imgdist.config.loading import load
from imgdist.config.registries import RegistryConfig, RegistryHost
from imgdist.config.supernode import SupernodeConfig

__all__ = [
    "AgentConfig",
    "RegistryConfig",
    "RegistryHost",
    "SupernodeConfig",
    "keys",
    "load",
    "toml",
    "toml_value",
]
