"""Python looks for garbage after every 700 new objects. Imports make millions that are none: see `conftest.py`."""

import gc

DEFAULT_THRESHOLDS = gc.get_threshold()
gc.set_threshold(100_000, 50, 100)
