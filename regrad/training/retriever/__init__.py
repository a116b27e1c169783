"""Training a retriever by whether what it finds helps the answer: objectives, likelihoods, and one worker's run."""
