"""The evaluator: corpora, splits, protocols, statistics, reports; it knows the others by their contracts only."""
