"""Tag clips with the Python client: python tag.py CLIP..."""

import sys

from music_tagger_client import Client, Problem

with Client() as client:
    for path in sys.argv[1:]:
        try:
            tagging = client.tag(path)
        except Problem as problem:
            print(path, problem, file=sys.stderr)
        else:
            print(path, *(f"{tag} {score:.2f}" for tag, score in tagging.scores.items()))
