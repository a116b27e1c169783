"""Reading a model's answer to an open or closed question."""
