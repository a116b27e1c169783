"""Atoms on their way out of a bank and into one: copies of banks, files of tensors, and what other projects wrote."""
