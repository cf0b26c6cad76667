"""The tagger: audio in, scores out. Knows nothing of HTTP; usable as a library."""
