"""Training: what all runs share, and meta-training, LoRAs and synthesis on top of it."""
