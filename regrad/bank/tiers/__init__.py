"""Where a reader finds atoms: memory, a local disk, the store that the bank is in. One file a tier."""
