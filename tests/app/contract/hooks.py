"""What schemathesis cannot make up itself: a binary is a real clip, so that good requests are really good."""

import base64

import schemathesis
from hypothesis import strategies as st

from tests.fuzz import sources

CLIPS = st.sampled_from([clip for clip in sources().values() if len(clip) < 50_000])

schemathesis.openapi.format("binary", CLIPS)
schemathesis.openapi.format("byte", CLIPS.map(lambda clip: base64.b64encode(clip).decode()))
for media_type in ("application/octet-stream", "audio/*"):
    schemathesis.openapi.media_type(media_type, CLIPS)
