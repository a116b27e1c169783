"""Writing questions for passages that have none."""
