"""A journal engine on RocksDB."""
