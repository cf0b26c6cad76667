"""The tagger beside public taggers on the same clips: their best words, sensible words, and a linear probe.

A rival file (npz) holds `ids` [N], `tags` [M] (words, `TAGGER/WORD`) and `scores` [N, M] in [0, 1]. All is
arranged in the rivals' favour: of each public tagger stands here the word that does best on these very clips,
and the probe learns from every labelled clip whose source it is not measured on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model.evaluation.metrics import (
    RESAMPLES,
    Estimate,
    Floats,
    interval,
    roc_auc,
    source_weights,
    tag_metrics,
    weighted_average_precision,
)
from model.evaluation.report import Evaluation, label_array, markdown_table
from model.training.corpus import Clip, ManifestError

FOLDS: Final = 10
PROBE_C: Final = 0.01
"""Inverse of the probe's L2 penalty: of 0.0003 to 1, that of the probe's best mean average precision on our
corpus, on labels from metadata or assumed."""
SMALLEST: Final = 1e-4
"""Scores are kept this far from 0 and 1 before they become logits: half precision holds no more."""

INDEPENDENT: Final = ("metadata", "assumed")
"""Evidence of labels that are not the public taggers' own word."""

NAMED: Final = (
    ("vocal", "voice", ("jamendo/instrument---voice",)),
    ("vocal", "female + male vocalists", ("msd/female vocalists", "msd/male vocalists")),
    ("vocal", "singing + vocal + vocals + voice", ("mtt/singing", "mtt/vocal", "mtt/vocals", "mtt/voice")),
    ("vocal", "singing, choir, chant, rapping", ("audioset/24", "audioset/25", "audioset/27", "audioset/31")),
    (
        "dance",
        "dance + house + techno + trance",
        tuple(f"jamendo/genre---{word}" for word in ("dance", "house", "techno", "trance")),
    ),
    ("dance", "dance + House", ("msd/dance", "msd/House")),
    ("dance", "dance + techno + beat", ("mtt/dance", "mtt/techno", "mtt/beat")),
    (
        "dance",
        "house, techno, electronic dance, dance music",
        tuple(f"audioset/{n}" for n in (235, 236, 240, 269)),
    ),
    (
        "soundtrack",
        "soundtrack + orchestral + film",
        ("jamendo/genre---soundtrack", "jamendo/genre---orchestral", "jamendo/mood/theme---film"),
    ),
    ("soundtrack", "theme, soundtrack, video game music", ("audioset/263", "audioset/265", "audioset/267")),
    ("pop", "pop + poprock", ("jamendo/genre---pop", "jamendo/genre---poprock")),
    ("pop", "pop", ("msd/pop",)),
    ("pop", "pop", ("mtt/pop",)),
    ("pop", "pop music", ("audioset/211",)),
)
"""(our tag, how it reads, words whose scores are summed); used where tag and words exist."""


@dataclass(frozen=True, slots=True)
class Rivals:
    """What public taggers say: `scores` [N, M] in [0, 1] of the clips `rows`, in `words` `TAGGER/WORD`."""

    words: tuple[str, ...]
    rows: dict[str, int]
    scores: Floats

    def of(self, clips: Sequence[Clip]) -> Floats:
        """The scores of these clips, [len(clips), M]."""
        return self.scores[[self.rows[clip.id] for clip in clips]]


@dataclass(frozen=True, slots=True)
class Standing:
    """How well one contestant ranks one tag; `who` is a kind, `what` tells which of that kind."""

    tag: str
    who: str
    what: str
    roc_auc: Estimate
    average_precision: Estimate


def read_rivals(path: Path, clips: Sequence[Clip]) -> Rivals:
    """Read a rival file.

    Raises:
        ManifestError: it is missing or no npz, lacks an array or a clip, or its shapes or scores do not fit.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            ids, words, scores = (arrays[name] for name in ("ids", "tags", "scores"))
            fits = scores.shape == (len(ids), len(words)) and ((scores >= 0) & (scores <= 1)).all()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); give the path of an npz") from error
    except (KeyError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise ManifestError(f"{path}: not an npz with the arrays ids, tags and scores ({error})") from error
    if not fits:
        raise ManifestError(
            f"{path}: scores must be [{len(ids)} ids, {len(words)} tags] in [0, 1], not {list(scores.shape)}"
        )
    rows = {str(name): row for row, name in enumerate(ids)}
    missing = [clip.id for clip in clips if clip.id not in rows]
    if missing:
        raise ManifestError(
            f"{path}: no scores of {len(missing)} clips ({', '.join(missing[:3])}); "
            "let the public taggers score them, or choose other rows"
        )
    return Rivals(tuple(map(str, words)), rows, scores.astype(np.float64))


def probe_scores(scores: Floats, labels: Floats, sources: NDArray[np.str_]) -> Floats:
    """What a linear probe on the rivals' scores says of each clip, never having met its source: [N].

    Standardised logits, then logistic regression with an L2 penalty, in at most ten folds by source; its
    scores are in [0, 1], and 0.5 where the other folds know one class only.

    Args:
        scores: [N, M] in [0, 1].
        labels: [N] of one tag, nan where unknown; trained on wherever known.
        sources: [N], of which at least two must differ.
    """
    logits = np.log(scores.clip(SMALLEST, 1 - SMALLEST) / (1 - scores).clip(SMALLEST, 1 - SMALLEST))
    found = np.empty(len(labels))
    folds = GroupKFold(min(FOLDS, len(set(sources.tolist()))))
    for train, test in folds.split(logits, groups=sources):
        known = train[~np.isnan(labels[train])]
        truth = labels[known] >= 0.5
        if truth.all() or not truth.any():
            found[test] = 0.5
            continue
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=PROBE_C, max_iter=1000))
        found[test] = probe.fit(logits[known], truth).predict_proba(logits[test])[:, 1]
    return found


def probe_all(evaluation: Evaluation, rivals: Rivals, pool: Sequence[Clip]) -> Floats | None:
    """The probe's scores of every evaluated clip and tag, [N, T]; None if the pool is of one source.

    `pool` is what the probe learns from, fold by fold: the evaluated clips and any others with labels. Those
    of which the rivals say nothing are left out.
    """
    known = [clip for clip in pool if clip.id in rivals.rows]
    sources = np.array([clip.source for clip in known])
    if len(set(sources.tolist())) < 2:
        return None
    scores, labels = rivals.of(known), label_array(known, len(evaluation.tags))
    found = np.stack([probe_scores(scores, column, sources) for column in labels.T], axis=1)
    row_of = {clip.id: row for row, clip in enumerate(known)}
    return found[[row_of[clip.id] for clip in evaluation.clips]]


def best_words(words: Sequence[str], scores: Floats, labels: Floats) -> list[int]:
    """By public tagger, the column of the best ROC-AUC, and that of the best average precision if another.

    `scores` [N, M] of `words` [M], which stand in groups; `labels` [N] know both classes, nan is unknown.
    """
    known = ~np.isnan(labels)
    truth = labels[known] >= 0.5
    found: list[int] = []
    for _, group in groupby(range(len(words)), key=lambda column: words[column].partition("/")[0]):
        columns = list(group)
        by_metric = [
            [metric(truth, scores[known, column]) for column in columns]
            for metric in (roc_auc, average_precision_score)
        ]
        found += dict.fromkeys(columns[int(np.argmax(values))] for values in by_metric)
    return found


def standings(
    evaluation: Evaluation,
    rivals: Rivals,
    probe: Floats | None,
    keep: NDArray[np.bool_],
    *,
    resamples: int = RESAMPLES,
) -> list[Standing]:
    """Every contestant's standing in every tag, on the labels that `keep` [N, T] lets through.

    A tag of which not both classes are known has none. `probe` is what `probe_all` gave.
    """
    theirs = rivals.of(evaluation.clips)
    column_of = {word: column for column, word in enumerate(rivals.words)}
    found: list[Standing] = []
    for column, tag in enumerate(evaluation.tags):
        labels = np.where(keep[:, column], evaluation.labels[:, column], np.nan)
        if len(set((labels[~np.isnan(labels)] >= 0.5).tolist())) < 2:
            continue
        contestants = [("ours", evaluation.title, evaluation.scores[:, column])]
        if probe is not None:
            contestants.append(("linear probe", f"all {len(rivals.words)} words", probe[:, column]))
        for best in best_words(rivals.words, theirs, labels):
            group, _, word = rivals.words[best].partition("/")
            contestants.append((f"best of {group}", word, theirs[:, best]))
        for named, reads, words in NAMED:
            if named == tag and set(words) <= set(column_of):
                mean = theirs[:, [column_of[word] for word in words]].mean(axis=1)
                contestants.append((words[0].partition("/")[0], reads, mean))
        for who, what, scores in contestants:
            metrics = tag_metrics(tag, labels, scores, evaluation.sources.tolist(), 0.5, resamples=resamples)
            found.append(Standing(tag, who, what, metrics.roc_auc, metrics.average_precision))
    return found


def macro_average_precision(
    labels: Floats, scores: Floats, sources: NDArray[np.str_], resamples: int = RESAMPLES
) -> Floats:
    """Mean over the tags of the average precision: [1 + resamples], first of the clips as they are.

    `labels` [N, T] are nan where unknown, `scores` [N, T] in [0, 1]. The resamples are the same for the same
    sources, so that the draws of two contestants can be subtracted; nan where a tag has no positive.
    """
    if np.isnan(labels).all(axis=0).any():
        return np.full(1 + resamples, np.nan)
    weights = np.concatenate([np.ones((1, len(sources))), source_weights(sources, resamples, seed=0)])
    columns = []
    for label, score in zip(labels.T, scores.T, strict=True):
        known = ~np.isnan(label)
        columns.append(weighted_average_precision(label[known] >= 0.5, score[known], weights[:, known]))
    means: Floats = np.mean(columns, axis=0)
    return means


def rivals_section(
    evaluation: Evaluation, rivals: Rivals, pool: Sequence[Clip], *, resamples: int = RESAMPLES
) -> list[str]:
    """Write the lines of the report's section; `pool` is what the probe learns from (see `probe_all`)."""
    probe = probe_all(evaluation, rivals, pool)
    lines = [
        "",
        "## Beside public taggers",
        "",
        "All on the same clips. `best of` is the one word of a public tagger that does best",
        "*on these very clips* (by ROC-AUC, and by average precision where that is another word),",
        "which favours it. The rows below are words that one would choose by their names, summed.",
        f"The linear probe is a logistic regression on the logits of all words, in {FOLDS} folds by source:",
        f"it never met a clip's source, but learned from the labels of the others among {len(pool)} clips.",
        "Among all labels are those that these very taggers gave (evidence `taggers`).",
    ]
    independent = np.isin(evaluation.evidence, INDEPENDENT)
    for name, keep in (
        ("Labels from metadata or assumed", independent),
        ("All labels", np.ones_like(independent)),
    ):
        rows = standings(evaluation, rivals, probe, keep, resamples=resamples)
        if not rows:
            continue
        lines += ["", f"### {name}", "", *_macro(evaluation, probe, keep, resamples)]
        for tag, group in groupby(rows, key=lambda row: row.tag):
            cells = [(row.who, row.what, str(row.roc_auc), str(row.average_precision)) for row in group]
            lines += ["", *markdown_table((tag, "", "ROC-AUC", "average precision"), cells)]
    return lines


def _macro(
    evaluation: Evaluation, probe: Floats | None, keep: NDArray[np.bool_], resamples: int
) -> list[str]:
    if probe is None:
        return ["No linear probe: it needs clips of at least two sources."]
    labels = np.where(keep, evaluation.labels, np.nan)
    ours, theirs = (
        macro_average_precision(labels, scores, evaluation.sources, resamples)
        for scores in (evaluation.scores, probe)
    )
    difference = ours - theirs
    if np.isnan(difference[0]):
        return ["No mean over the tags: one of them has no positive."]
    judged = ~np.isnan(labels).all(axis=1)
    several = len(set(np.array(evaluation.sources)[judged])) > 1  # of one, every resample is the same
    low, high = interval(difference[1:]) if several else (np.nan, np.nan)
    return [
        f"Mean over the tags of the average precision: ours {ours[0]:.3f}, the linear probe {theirs[0]:.3f},"
        f" difference {Estimate(difference[0], low, high)}."
    ]
