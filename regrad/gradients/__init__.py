"""Passages to gradients, and merging them."""
