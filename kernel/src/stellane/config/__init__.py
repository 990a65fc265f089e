"""stellane.config.toml as typed structures."""

from stellane.config.loader import DEFAULT_FILE, LoadedConfig, Origin, Source, load, with_application_defaults
from stellane.config.schema import (
    Config,
    HttpConfig,
    LimitsConfig,
    PerformanceConfig,
    RecoveryConfig,
    RuntimeConfig,
    ServerConfig,
    ShutdownConfig,
)

__all__ = [
    "DEFAULT_FILE",
    "Config",
    "HttpConfig",
    "LimitsConfig",
    "LoadedConfig",
    "Origin",
    "PerformanceConfig",
    "RecoveryConfig",
    "RuntimeConfig",
    "ServerConfig",
    "ShutdownConfig",
    "Source",
    "load",
    "with_application_defaults",
]
