"""A method is `plan(evidence, atoms) -> (prompt, update, notes)`: one file a family."""
