"""The parts of `benchmarks/trained_retrieval.py`."""
