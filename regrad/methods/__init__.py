"""A method is `(question, passages) -> (prompt, update)`: one file a family."""
