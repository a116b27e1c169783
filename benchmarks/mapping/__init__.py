"""Parts of `code_map.py`."""
