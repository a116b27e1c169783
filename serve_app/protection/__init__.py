"""Who may ask, and how often: API keys, rate limits, CORS and security headers, in front of any ASGI application."""
