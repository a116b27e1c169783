"""DyPRAG's translator: a network that says in a forward pass which LoRA training on a passage would give."""
