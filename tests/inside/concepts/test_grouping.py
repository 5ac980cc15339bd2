"""Latents that act alike are grouped, chance does not group, labels tell what sets a concept apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from fairlead.concepts.grouping import check_room, correlation, group_latents, merge_groups, pair_distances
from fairlead.concepts.labels import detect_words, make_label, score_label, shows_concept, split_words
from fairlead.core.errors import ConfigError


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


def test_label_words_are_those_that_only_the_concepts_texts_have():
    shows = np.arange(100) < 30
    counts = np.zeros((100, 4))
    counts[:20, 0] = 1  # a marker: two thirds of the concept's texts and no other
    counts[:, 1] = 3  # in every text
    counts[::10, 2] = 1  # chance
    counts[90:, 3] = 1  # only in others
    score = detect_words(csr_array(counts), shows)
    assert score.argmax() == 0 and score[0] > 0.8
    assert score[1] == score[2] == score[3] == 0, "words at or below the base rate say nothing"
    assert not detect_words(csr_array(counts), np.zeros(100, dtype=bool)).any()


def test_words_are_put_together_from_tokens_and_numbers_are_one_word():
    pieces = [" ", "A", "rr", ",", " 1", "2", " plus", " 3", " is", " mate", "y", "!", " "]
    words = split_words(range(len(pieces)), pieces)
    assert [word for word, _ in words] == ["arr", ",", "number", "plus", "number", "is", "matey", "!"]
    assert words[0][1] == (1, 2) and words[2][1] == (4, 5)


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


def test_distances_made_in_blocks_are_those_of_the_dense_matrix():
    profile = themes()
    dense = np.clip(1 - correlation(profile), 0, 2)
    first, second = np.triu_indices(18, 1)
    np.testing.assert_allclose(pair_distances(profile, block=8), dense[first, second], atol=1e-12)


def test_more_latents_than_memory_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr("fairlead.concepts.grouping.free_bytes", lambda: 2**20)
    with pytest.raises(ConfigError, match="--single"):
        check_room(1000, 100)
    check_room(100, 100)
    monkeypatch.setattr("fairlead.concepts.grouping.free_bytes", lambda: None)
    check_room(10**6, 100)
    with pytest.raises(ConfigError, match="--single"):
        monkeypatch.setattr("fairlead.concepts.grouping.free_bytes", lambda: 100)
        group_latents(themes())
