"""The embedder: one process serves one backbone on one device; it knows audio and encoders, nothing of emotions."""
