"""Decides. Pure: no async, clock, files, sockets or randomness."""
