"""Finding passages: BM25 with Lucene, behind one small protocol."""
