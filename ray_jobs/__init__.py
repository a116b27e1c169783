"""What a Ray cluster runs, one file a job. Thin: every computation they call can be called without Ray."""
