"""How fast the tagger is, as ratios against named references: each module is one command (README.md)."""
