"""Decoding a batch in which every request has its own update."""
