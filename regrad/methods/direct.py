"""Direct: the base model alone, from what it learned in pre-training."""

from regrad.methods.base import Method

DIRECT = Method("direct", "the base model alone", passages_in_prompt=False, served=True)
