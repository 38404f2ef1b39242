"""The control side: observe, decide, act, look again."""
