"""Tag a clip with httpx alone: python tag_httpx.py CLIP."""

import os
import sys
from pathlib import Path

import httpx

url = os.environ.get("MUSIC_TAGGER_URL", "http://127.0.0.1:8000")
key = os.environ.get("MUSIC_TAGGER_KEY")
headers = {"Authorization": f"Bearer {key}"} if key else {}

with Path(sys.argv[1]).open("rb") as clip:
    response = httpx.post(f"{url}/v1/tags", content=clip, headers=headers, timeout=120)
if response.is_error:
    if "json" not in response.headers.get("content-type", ""):  # not the service, but a proxy before it
        sys.exit(f"HTTP {response.status_code}")
    problem = response.json()
    sys.exit(f"{problem['title']}: {problem['detail']} {problem['hint']}")
for tag in response.json()["tags"]:
    print(f"{tag['tag']} {tag['score']:.2f}")
