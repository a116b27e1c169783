"""The lab world: invented people, a tiny Llama trained on them, and everything in minutes on a CPU.

The base model has never seen the held-out people, so a right answer about one of them can only come from what was given
for that question: a passage in the prompt, or its gradient.
"""
