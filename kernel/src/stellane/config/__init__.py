"""stellane.config.toml as typed structures."""

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
    "Config",
    "HttpConfig",
    "LimitsConfig",
    "PerformanceConfig",
    "RecoveryConfig",
    "RuntimeConfig",
    "ServerConfig",
    "ShutdownConfig",
]
