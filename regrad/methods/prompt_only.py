"""Methods without an update: the base model alone, and passages in the prompt."""

from __future__ import annotations

from regrad.methods.base import Method

DIRECT = Method("direct", "the base model alone", passages_in_prompt=False, served=True)


RAG = Method("rag", "passages in the prompt", passages_in_prompt=True, served=True)
PE_RAG = Method("pe-rag", "passages in a prompt with more instruction", passages_in_prompt=True, style="pe")
