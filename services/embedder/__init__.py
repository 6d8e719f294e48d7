"""The embedder: one process serves one backbone on one device. It knows audio and encoders; it knows nothing of emotions."""
