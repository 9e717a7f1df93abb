"""How long, how much: pure functions."""
