"""What each release is; see models/README.md."""
