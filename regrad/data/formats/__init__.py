"""Readers of question sets, one file a family."""
