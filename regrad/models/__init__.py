"""The base model: loading, the adaptation subspace, per-request LoRA, batches of tokens."""
