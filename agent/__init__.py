"""The device agent: two services that keep models fresh, safe and serving."""

VERSION = "0.1.0"
