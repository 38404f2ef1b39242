"""The operator's desk: publish, roll out, command, watch."""
