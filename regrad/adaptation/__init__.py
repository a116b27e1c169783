"""Training LoRAs on text: one for good, one a passage (PRAG), or one for a question and then forgotten."""
