"""Access to the server: API keys and rate limits."""
