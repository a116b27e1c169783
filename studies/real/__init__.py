"""A real chat model on real text: SmolLM2-135M meta-trained on SQuAD, asked about articles that it never saw."""
