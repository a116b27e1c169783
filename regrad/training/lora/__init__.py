"""Training LoRAs: static ones, one a passage, and what they are trained on."""
