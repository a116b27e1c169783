"""Every method on every question set: planning and running cells, scoring answers, leaks, statistics and the report."""
