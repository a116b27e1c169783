"""Finding passages: retrievers that an index's card opens, and the passages' texts beside it."""
