"""The four tags of the shipped tagger: fixed in order, and not exclusive."""

from typing import Final

TAGS: Final = ("vocal", "dance", "soundtrack", "pop")

MEANINGS: Final = {
    "vocal": "a human voice sings, raps or chants as part of the music (solo, choir, chopped hook)",
    "dance": (
        "made to dance to: a steady beat carries it "
        "(house, techno, trance, disco, drum and bass, dance-pop, eurobeat)"
    ),
    "soundtrack": "written as, or sounds as, music to picture: film, series, game, trailer score",
    "pop": "popular-song idiom: verse and hook, contemporary production",
}
