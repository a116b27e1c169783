"""Python looks for garbage after every 700 new objects by default. Imports and models make millions that are none."""

import gc

gc.set_threshold(100_000, 50, 100)
