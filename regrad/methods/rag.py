"""RAG: the retrieved passages in the prompt, no update. PE-RAG: the same with more instruction in the prompt."""

from regrad.methods.base import Method

RAG = Method("rag", "passages in the prompt", passages_in_prompt=True, served=True)
PE_RAG = Method("pe-rag", "passages in a prompt with more instruction", passages_in_prompt=True, style="pe")
