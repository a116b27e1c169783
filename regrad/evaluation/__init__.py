"""Metrics, and the client that asks a running server."""
