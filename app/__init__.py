"""The service: HTTP in, JSON out. Knows nothing of tensors beyond handing audio to the tagger."""

__version__ = "0.1.0"
