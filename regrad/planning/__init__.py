"""A server's configuration from measurements: profiles of stages, a model of speed, and a search (after RAGO)."""
