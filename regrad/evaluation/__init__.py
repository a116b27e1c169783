"""Metrics, question sets, leaks between them, and the client that asks a running server."""
