"""What everything else reads and writes: passages, corpora, questions, tasks, predictions."""
