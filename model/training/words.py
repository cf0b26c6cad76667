"""The public taggers' words for a tag, joined into one opinion: a target where labels are few or mislead.

Nearly all pop and dance labels of the corpus are of generated songs, and a network that learns from them
alone takes "generated" for "pop". The words of taggers that have heard a million human songs rank clips of
unseen sources better than a probe fitted on those labels does.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.training.cache import CLIP_S
from model.training.teachers import SECONDS_PER_ROW

Lessons = Mapping[str, NDArray[np.float16]]

SINGING: Final = (
    "Singing", "Choir", "Yodeling", "Chant", "Mantra", "Child singing", "Synthetic singing", "Rapping",
    "Opera", "Vocal music", "A capella",
)  # fmt: skip


class Words(NamedTuple):
    """Words of one teacher whose probabilities are added up.

    Attributes:
        teacher: whose.
        words: which.
        speak_against: whether they say that the tag does not apply.
        weight: beside other groups.
        least: a lower sum counts as this.
    """

    teacher: str
    words: tuple[str, ...]
    speak_against: bool = False
    weight: float = 1.0
    least: float = 1e-4


NO_VOCALS: Final = ("no vocals", "no vocal", "no voice")

WORDS: Final[dict[str, tuple[Words, ...]]] = {
    "vocal": (
        Words("audioset", SINGING),
        Words("audioset", ("Singing",)),
        Words("mtt", ("voice", "vocals", "vocal", "singing")),
        Words("mtt", NO_VOCALS, speak_against=True),
        Words("spleeter", ("voice",), weight=2.0, least=0.01),
    ),
    "dance": (
        Words("jamendo", ("genre---dance", "genre---house", "genre---techno", "genre---trance")),
        Words("msd", ("House",)),
        Words("msd", ("electro",)),
        Words("msd", ("dance",)),
    ),
    "soundtrack": (
        Words("mtt", NO_VOCALS),
        Words("msd", ("instrumental",)),
        Words("audioset", ("Soundtrack music", "Theme music", "Background music")),
    ),
    "pop": (
        Words("jamendo", ("genre---pop",)),
        Words("msd", ("pop",)),
        Words("mtt", ("vocal",)),
    ),
}
"""A tag: groups of words. A teacher who was not asked is left out.

Of the corpus's clips whose labels are from metadata or assumed, the groups' mean ranks soundtrack at ROC-AUC
0.947, and at 0.926 with Jamendo's soundtrack, orchestral and film in the place of MTT's *no vocals*. Without
these, which speak against it, vocal is ranked at 0.963 instead of 0.966; with how much is voice as well, at
0.970, and human vocal (all labels) at 0.933 instead of 0.898. Without MTT's *vocal*, pop is ranked at 0.914
instead of 0.916.

MTT's *dance*, *techno* and *beat* in the place of MSD's *dance* rank these clips at 0.954 instead of 0.946,
but only as they score a generator's songs all alike: within these they rank worse, and so did a network that
learned from them and had not met that generator (0.798 instead of 0.818).
"""

TRUST: Final = {"vocal": (0.3, 0.8), "dance": (0.9, 0.9), "soundtrack": (0.5, 0.5), "pop": (0.9, 0.9)}
"""How much of a target the words are where a label is known, too: where it is a no, and where it is a yes.

That a clip is sung does not say when, and the words do; that it is not holds for each second of it.

On sources left out, a linear model of the teachers' scores ranked vocal best when fitted to labels (ROC-AUC
0.966, the words alone 0.951), soundtrack when fitted to both (0.950; 0.916 and 0.944 alone), and nothing that
saw labels ranked dance and pop as well as the words alone (0.950 and 0.901; labels alone 0.879 and 0.849).
These were other words than today's.
"""


def trust_in_words(tags: Sequence[str]) -> NDArray[np.float32]:
    """[2, K]: `TRUST` of each tag, 0 where it has no words."""
    return np.array([TRUST.get(tag, (0.0, 0.0)) for tag in tags], np.float32).T


OPINION: Final = {"vocal": (5.4, -1.3), "dance": (4.5, -1.4), "soundtrack": (4.8, -1.0), "pop": (3.3, -4.0)}
"""Scale and bias that make a logit of what a tag's words say, by Platt's method on the training split.

Those of `vocal` are for words with Spleeter among them (without: 3.8 and -1.9).

They are constants, as they would move the scores of one fold of a cross-validation against another's:
without ACE-Step's songs, of which there are many, the same method gives 6.7 and -2.4 for dance.
"""


def opinion_scale(tags: Sequence[str]) -> NDArray[np.float32]:
    """[2, K]: `OPINION` of each tag, (1, 0) where it has no words."""
    return np.array([OPINION.get(tag, (1.0, 0.0)) for tag in tags], np.float32).T


def opinions(
    tags: Sequence[str], lessons: Lessons, names: Mapping[str, Sequence[str]]
) -> NDArray[np.float16]:
    """What the teachers think of each tag by the second, on a scale of standard deviations: [N, 29, K].

    Args:
        tags: K tags; of one that has no `WORDS` the opinion is NaN.
        lessons: scores in [0, 1] by teacher, as the cache holds them.
        names: what the columns of a teacher's scores mean.
    """
    clips = len(next(iter(lessons.values())))
    unknown = np.full((clips, CLIP_S), np.nan, np.float32)
    columns = []
    for tag in tags:
        asked = [group for group in WORDS.get(tag, ()) if group.teacher in lessons]
        said = [_opinion(group, lessons[group.teacher], names[group.teacher]) for group in asked]
        weights = [group.weight for group in asked]
        columns.append(np.average(said, 0, weights) if asked else unknown)
    return np.stack(columns, 2).astype(np.float16)


def _opinion(group: Words, scores: NDArray[np.float16], names: Sequence[str]) -> NDArray[np.float32]:
    """What one group of words says by the second [N, 29], of its teacher's scores."""
    said = standardised(by_second(np.log(_total(scores, names, group)), group.teacher))
    return -said if group.speak_against else said


def _total(scores: NDArray[np.float16], names: Sequence[str], group: Words) -> NDArray[np.float32]:
    """[N, (rows,) words of the teacher] -> [N, (rows,) 1]: the sum over the group's, at least `least`."""
    columns = [names.index(word) for word in group.words]
    total: NDArray[np.float32] = scores[..., columns].astype(np.float32).sum(-1, keepdims=True)
    return np.maximum(total, group.least)


def by_second(rows: NDArray[np.float32], teacher: str) -> NDArray[np.float32]:
    """[N, rows, M] or [N, M] -> [N, 29, M]: the row in which each second's middle lies, or the last.

    Rows behind the end of a clip are NaN.
    """
    if teacher not in SECONDS_PER_ROW:
        return np.repeat(rows[:, None], CLIP_S, 1)
    last = (~np.isnan(rows[:, :, 0])).sum(1) - 1
    row = ((np.arange(CLIP_S) + 0.5) / SECONDS_PER_ROW[teacher]).astype(int)
    chosen: NDArray[np.float32] = rows[np.arange(len(rows))[:, None], np.minimum(row, last[:, None])]
    return chosen


def standardised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, 29, M] -> zero mean and unit variance per column, within 6 deviations; a lone column is dropped."""
    flat = values.reshape(-1, values.shape[2])
    mean, deviation = np.nanmean(flat, 0), np.nanstd(flat, 0)
    standard: NDArray[np.float32] = np.clip((values - mean) / np.maximum(deviation, 1e-3), -6.0, 6.0)
    return standard[..., 0] if values.shape[2] == 1 else standard
