"""What the server tells of itself: metrics, one log line a request, and traces."""
