"""Passages -> atoms (gradients), many at once."""
