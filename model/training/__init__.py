"""Training: from a manifest of clips to a bundle of weights."""
