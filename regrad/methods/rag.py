"""RAG: the retrieved passages in the prompt, no update."""

from regrad.methods.base import Method

RAG = Method("rag", "passages in the prompt", passages_in_prompt=True, applies_gradients=False)
