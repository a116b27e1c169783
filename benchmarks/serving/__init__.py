"""What the benchmarks of the server share, and the authors' way beside it."""
