"""Meta-training only: tasks, the bi-level objective, the loop and its optimiser engine."""
