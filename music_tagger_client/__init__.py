"""A typed client of music-tagger's HTTP API; it needs neither the service nor PyTorch.

from music_tagger_client import Client

with Client("http://127.0.0.1:8000") as client:
    print(client.tag("song.mp3").scores["vocal"])
"""

from music_tagger_client.client import AsyncClient, Client
from music_tagger_client.problem import Problem
from music_tagger_client.results import Audio, Model, ModelName, Tagging, TagMeaning, TagScore, Timing, Window
from music_tagger_client.upload import Clip

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Audio",
    "Client",
    "Clip",
    "Model",
    "ModelName",
    "Problem",
    "TagMeaning",
    "TagScore",
    "Tagging",
    "Timing",
    "Window",
]
