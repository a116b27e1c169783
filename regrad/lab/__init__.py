"""The lab world: invented people, a tiny Llama trained on them, and everything in minutes on a CPU.

The held-out people were never seen by the base model, so a right answer about one of them
can only come from what was given for that question: a passage in the prompt, or its gradient.
"""

from __future__ import annotations

BASE_MODEL = "package:regrad.lab/base"
"""Where the base model that ships with regrad lives, in the form that `model.path` takes."""
