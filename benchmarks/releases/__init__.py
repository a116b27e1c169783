"""What `fidelity.py` compares: the authors' public code, and this library, on one base."""
