"""Parametric retrieval: a document's gradient is computed once, stored, and applied for the questions that need it."""
