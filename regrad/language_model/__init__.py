"""The base model: loading, the adaptation subspace, per-request LoRA, decoding."""
