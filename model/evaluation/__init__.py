"""How good a tagger is: per-tag metrics with intervals by source, a report, plots."""
