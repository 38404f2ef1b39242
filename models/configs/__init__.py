"""How each release is run; see models/README.md."""
