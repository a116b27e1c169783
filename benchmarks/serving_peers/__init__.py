"""The two sides of `peers.py`."""
