"""Servox: containerised model serving and cross-corpus evaluation for speech emotion recognition."""

__version__ = "0.1.0"
