"""Touches the outside: store, broker, disk, host, systemd, memory files."""
