"""Believes: bytes in, verified values out. Pure; tests/test_layers.py keeps it so."""
