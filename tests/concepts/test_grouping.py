"""Latents that act alike are grouped, chance does not group, labels tell what sets a concept apart."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.concepts.grouping import correlation, group_latents, merge_groups
from fairlead.concepts.labels import contrast_tokens, make_label, score_label, shows_concept


def themes(seed: int = 0, num: int = 400):
    """Three themes of four noisy latents, each firing in a third of its texts only, and six latents of pure chance."""
    rng = np.random.default_rng(seed)
    on = rng.random((num, 3)) < 0.3
    parts = [on[:, [theme]] * (rng.random((num, 4)) < 0.6) * (1 + rng.random((num, 4))) for theme in range(3)]
    return np.concatenate([*parts, (rng.random((num, 6)) < 0.3) * rng.random((num, 6))], axis=1)


def test_planted_themes_are_found_and_chance_stays_single():
    groups = group_latents(themes())
    assert [0, 1, 2, 3] in groups and [4, 5, 6, 7] in groups and [8, 9, 10, 11] in groups
    assert [group for group in groups if group[0] >= 12] == [[i] for i in range(12, 18)]


def test_shuffled_texts_give_no_groups():
    profile = themes()
    rng = np.random.default_rng(1)
    shuffled = np.stack([rng.permutation(column) for column in profile.T], axis=1)
    assert all(len(group) == 1 for group in group_latents(shuffled)), (
        "the placebo: the same activations without company"
    )


def test_merging_equals_recomputing_from_scratch():
    profile, groups = themes(3), [[i] for i in range(18)]
    while True:
        summed = np.stack([profile[:, group].sum(1) for group in groups], axis=1)
        similar = correlation(summed)
        np.fill_diagonal(similar, -1)
        first, second = np.unravel_index(similar.argmax(), similar.shape)
        if similar[first, second] < 0.35:
            break
        groups[first] = groups[first] + groups[second]
        del groups[second]
    found = merge_groups(profile, [[i] for i in range(18)], merge_similarity=0.35)
    assert sorted(found) == sorted(sorted(group) for group in groups)


def test_groups_are_disjoint_and_silent_latents_are_in_none():
    profile = themes()
    profile[:, 2] = 0
    profile[1:, 13], profile[0, 13] = 0, 1
    groups = group_latents(profile)
    members = [latent for group in groups for latent in group]
    assert len(members) == len(set(members)) and 2 not in members
    assert [13] in groups, "too rare for a profile"


def test_label_tokens_are_those_of_the_concepts_texts():
    first = np.array([30.0, 300.0, 2.0, 0.0])  # a marker, a common word, chance
    second = np.array([1.0, 900.0, 10.0, 50.0])
    score = contrast_tokens(first, second)
    assert score.argmax() == 0 and score[0] > 5 and score[1] < 1 and score[3] == 0


def test_label_score_tells_a_good_label_from_a_random_one():
    rng = np.random.default_rng(0)
    shown = rng.random(200) < 0.3
    ids = [[1, 2, 3, 7 if show else 4] for show in shown]
    acts = shown * (1 + rng.random(200))
    assert (shows_concept(acts) == shown).all()
    assert score_label(ids, acts, [7]) == 1.0 and abs(score_label(ids, acts, [2]) - 0.5) < 1e-9
    assert score_label(ids, np.zeros(200), [7]) is None


@pytest.mark.parametrize(
    ("tokens", "share", "label"),
    [
        ([" Arr", "arr", "!", " matey"], 0.99, "Arr, matey (in answers)"),
        ([" plus", "+"], 0.5, "plus"),
        (["!", "?"], 0.01, "!, ? (in prompts)"),
        ([], 0.5, "(no token stands out)"),
    ],
)
def test_labels_read_well(tokens, share, label):
    assert make_label(tokens, share) == label
