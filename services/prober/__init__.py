"""The prober: trains heads on stored embeddings, keeps them in a registry, hosts them. It knows nothing of corpora."""
