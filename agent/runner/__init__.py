"""The data side: the door that local clients use, and the seats that run models."""
