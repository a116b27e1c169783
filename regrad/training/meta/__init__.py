"""Meta-training of a MetaInit."""
