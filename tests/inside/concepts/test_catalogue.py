"""The catalogue on a planted dictionary: at the embedding of a tiny model, latent i acts on token w(i + 3) and on nothing else.

So everything is known: where a concept acts, its label, how well the label does, what a search must find.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

from fairlead.activations import ActivationStore
from fairlead.concepts import Catalogue, contrast, inspect_text
from fairlead.concepts.contrast import contrast_values, false_discovery
from fairlead.concepts.corpus import Corpus, GroupSums, iter_blocks, read_stretch
from fairlead.concepts.describe import choose, describe
from fairlead.concepts.effects import logit_effects
from fairlead.concepts.entries import TokenEffect
from fairlead.concepts.harvest import concept_directions, is_held_out, run_harvest
from fairlead.concepts.llm_labels import LabelAnswer, MatchAnswer
from fairlead.concepts.near import nearest_pairs
from fairlead.concepts.placebo import random_dictionary
from fairlead.concepts.scoring import word_detection, word_fuzzing
from fairlead.concepts.store import write_database
from fairlead.core.errors import CatalogueError, ConfigError, DataError
from fairlead.core.stats import auroc
from fairlead.data import Encoded, Row, collate
from fairlead.dictionaries import BlockSparse, Dictionary, load_dictionary
from fairlead.llm import ScriptedModel
from fairlead.llm.protocol import as_dicts
from fairlead.models.hooks import site_hook
from fairlead.reports import write_catalogue_page, write_inspection
from fairlead.studies.concepts import build_catalogue

NUM, FIRST, WINDOW = 8, 3, 8


@pytest.fixture(scope="module")
def texts() -> list[Encoded]:
    """600 rows of 6 to 20 random tokens; half of the rows have no planted token at all."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(600):
        low = FIRST if index % 2 else FIRST + NUM
        ids = rng.integers(low, 40, rng.integers(6, 21)).tolist()
        rows.append(Encoded(ids, [False, *[True] * (len(ids) - 1)], index, Row(text="x")))
    return rows


@pytest.fixture(scope="module")
def dictionary(model) -> Dictionary:
    rows = model.hf.get_input_embeddings().weight.detach()[FIRST : FIRST + NUM].clone()
    norm = rows.norm(dim=-1)
    unit = rows / norm[:, None]
    weights = {
        "W_enc": unit.T.contiguous(),
        "W_dec": unit,
        "b_enc": torch.zeros(NUM),
        "b_dec": torch.zeros(unit.shape[1]),
        "threshold": 0.95 * norm,
    }
    return Dictionary(weights, site="embed", model_fingerprint=model.fingerprint, model_name=model.name)


@pytest.fixture(scope="module")
def folder(model, dictionary, texts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("catalogue") / "concepts"
    build_catalogue(model, dictionary, texts, out=out, group=False, window=WINDOW, placebo=8)
    return out


@pytest.fixture(scope="module")
def catalogue(folder) -> Catalogue:
    return Catalogue.open(folder)


def harvested(model, dictionary, texts, path: Path, **options):
    groups = [[latent] for latent in range(NUM)]
    corpus = Corpus(texts, model)
    return (
        groups,
        corpus,
        run_harvest(path, model, dictionary, corpus, groups, window=WINDOW, seed=0, **options),
    )


def test_statistics_are_the_exact_counts(catalogue, texts):
    tokens = [token for row in texts for token in row.input_ids[1:]]
    assert len(catalogue) == NUM and catalogue.meta["num_tokens"] == len(tokens)
    for concept in catalogue.concepts:
        token, numbers = concept.latents[0] + FIRST, catalogue.statistics(concept.id)
        assert numbers.density == pytest.approx(tokens.count(token) / len(tokens))
        assert numbers.mean == pytest.approx(numbers.density * numbers.mean_active)
        assert numbers.max == pytest.approx(numbers.mean_active, rel=1e-4)
        assert numbers.in_answers is None, "plain text has no prompts"


def test_labels_are_the_planted_tokens_and_score_one(catalogue):
    for entry in catalogue.entries:
        word = f"w{entry.concept.latents[0] + FIRST}"
        assert entry.words[0][0] == word
        assert entry.acts_on[0] == (word, 1.0)
        assert entry.concept.label == word
        # not 1: the first token of a text is not looked at, but is one of its words
        assert entry.scores.detection > 0.93 and entry.scores.detection_near > 0.93
        assert entry.scores.fuzzing == 1.0


def test_a_label_of_another_concept_scores_at_chance(model, dictionary, texts, tmp_path):
    groups, corpus, harvest = harvested(model, dictionary, texts, tmp_path / "state")
    found = describe(model, dictionary, corpus, groups, harvest, window=WINDOW, label=None)
    detection, fuzzing = [], []
    for place, entry in enumerate(found.entries):
        other = found.entries[(place + 3) % NUM]
        evidence = found.evidence[entry.concept.id]
        words = [
            [set(text.split("w")) for text in part]
            for part in (evidence.shown, evidence.other, evidence.near)
        ]
        marks = [[{f"w{number}" for number in one if number} for one in part] for part in words]
        keys = {other.concept.label.split(",")[0].split(";")[0]: 1.0}
        detection.append(word_detection(keys, *marks).detection)
        fuzzing.append(word_fuzzing(keys, evidence.fuzzes))
    assert abs(np.mean(detection) - 0.5) < 0.1 and abs(np.mean(fuzzing) - 0.5) < 0.1


def test_examples_are_strongest_first_and_near_misses_hold_no_activation(catalogue):
    for concept in catalogue.concepts:
        word, shown = f"w{concept.latents[0] + FIRST}", catalogue.examples(concept.id)
        top = [example for example in shown if example.kind == "top"]
        assert len(top) == 8 and [e.peak for e in top] == sorted((e.peak for e in top), reverse=True)
        for example in shown:
            acts = [
                token
                for token, score in zip(example.context.tokens, example.context.scores, strict=True)
                if score > 0
            ]
            assert set(acts) == (set() if example.kind == "near_miss" else {word})
            if example.kind == "near_miss":
                assert word not in example.context.tokens[1:], (
                    "only the first token of a text is not looked at"
                )


def test_what_is_shown_or_labelled_from_is_never_scored_with(model, dictionary, texts, tmp_path):
    _, corpus, harvest = harvested(model, dictionary, texts, tmp_path / "state")
    for place in range(NUM):
        picks = choose(harvest, place, 8)
        known = {*picks.top, *picks.quantile, *picks.near, *picks.shown, *picks.other}
        held = {*picks.held_shown, *picks.held_other, *picks.held_near}
        assert held and not known & held
        assert is_held_out(np.array(sorted(held))).all()
        for number in picks.held_shown:
            assert place + FIRST in read_stretch(corpus, number, WINDOW).ids


def test_an_interrupted_harvest_goes_on_to_the_same_state(model, dictionary, texts, tmp_path):
    many = [Encoded(row.input_ids, row.loss_mask, index, row.row) for index, row in enumerate(texts * 2)]
    _, _, whole = harvested(model, dictionary, many, tmp_path / "whole")
    _, _, part = harvested(model, dictionary, many, tmp_path / "part", max_tokens=100)
    assert part.num_tokens < whole.num_tokens
    _, _, resumed = harvested(model, dictionary, many, tmp_path / "part")
    for name, value in whole.state.items():
        assert torch.equal(value, resumed.state[name]), f"{name} differs after resuming"


def test_the_draws_are_those_of_the_smallest_hashes_whatever_the_batches(model, dictionary, texts, tmp_path):
    """A draw does not depend on the order in which stretches come."""
    _, _, first = harvested(model, dictionary, texts, tmp_path / "a")
    mixed = Corpus(texts, model)
    from fairlead.concepts.harvest import Harvest

    second = Harvest(concept_directions(dictionary.decoder, [[i] for i in range(NUM)]), seed=0)
    sums = GroupSums([[i] for i in range(NUM)], NUM)
    for start in range(590, -10, -10):
        rows = [mixed[i] for i in range(start, start + 10)]
        for block in iter_blocks(model, dictionary, rows, sums, window=WINDOW):
            second.add(block)
    for place in range(NUM):
        assert sorted(first.drawn(place)[0]) == sorted(second.drawn(place)[0])
    assert sorted(first.sample[0]) == sorted(second.sample[0])


def test_group_sums_equal_the_loop():
    acts = torch.rand(3, 5, 7)
    groups = [[0, 3], [6], [1, 2]]
    expected = torch.stack([acts[..., group].sum(-1) for group in groups], -1)
    assert torch.allclose(GroupSums(groups, 7)(acts), expected)


def test_search_finds_by_word_and_by_what_it_activates(catalogue, model, dictionary):
    for concept in catalogue.concepts:
        word = f"w{concept.latents[0] + FIRST}"
        assert catalogue.search(f"about {word}", num=3)[0].concept.id == concept.id
        hits = catalogue.search(f"w50 {word} w51", num=3, model=model)
        assert hits[0].concept.id == concept.id and "as strongly as usual" in hits[0].why
    assert catalogue.search('" OR * NEAR(', num=3) == [], "a query is words, not FTS syntax"
    with pytest.raises(ConfigError, match="empty"):
        catalogue.search("  ")


def test_examples_find_what_the_description_has_no_word_for(catalogue, model):
    """As a clause of a spec: a text, and what shows it."""
    one, other = (f"w{concept.latents[0] + FIRST}" for concept in catalogue.concepts[:2])
    assert not catalogue.search("nameless", num=3)
    shown = [one, f"{one} {one}"]
    hits = catalogue.search("nameless", examples=shown, num=3, model=model)
    assert hits[0].concept.id == catalogue.concepts[0].id
    both = catalogue.search(other, examples=shown, num=2)
    assert {hit.concept.id for hit in both} == {concept.id for concept in catalogue.concepts[:2]}
    assert both[0].score == pytest.approx(both[1].score, rel=0.5), "the examples count as much as the text"
    with pytest.raises(ConfigError, match="example is empty"):
        catalogue.search("nameless", examples=[" "])


def test_contrast_ranks_the_planted_difference_first_and_finds_none_in_shuffled_sets(
    catalogue, model, dictionary, texts
):
    token = 5
    first = [row for row in texts if token in row.input_ids[1:]][:40]
    second = [row for row in texts if token not in row.input_ids][:40]
    lines = contrast(model, dictionary, catalogue.concepts, first, second)
    assert lines[0].concept.latents == (token - FIRST,)
    assert lines[0].auroc == 1.0 and lines[0].low == 1.0 and lines[0].q < 0.01
    with pytest.raises(DataError):
        contrast(model, dictionary, catalogue.concepts, first[:1], second)

    mixed = [*first, *second]
    rng = np.random.default_rng(1)
    order = rng.permutation(len(mixed))
    placebo = contrast(
        model, dictionary, catalogue.concepts, [mixed[i] for i in order[:40]], [mixed[i] for i in order[40:]]
    )
    assert min(line.q for line in placebo) > 0.05, "which set a text is in was drawn by lot"


def test_contrast_agrees_with_the_plain_auroc_and_exact_false_discovery_rates(catalogue):
    rng = np.random.default_rng(0)
    first, second = rng.random((20, NUM)), rng.random((30, NUM)) - 0.1
    for line in contrast_values(catalogue.concepts, first, second, num_permutations=50):
        place = [concept.id for concept in catalogue.concepts].index(line.concept.id)
        assert line.auroc == pytest.approx(auroc(first[:, place], second[:, place]))
    assert false_discovery(np.array([0.01, 0.04, 0.03, 0.5])) == pytest.approx(
        [0.04, 0.16 / 3, 0.16 / 3, 0.5]
    )


def test_inspect_says_where_each_concept_acts(catalogue, model):
    text = Encoded([20, 5, 21, 5, 4], [False, True, True, True, True], 0, Row(text="x"))
    seen = inspect_text(catalogue, model, text)
    by_latent = {one.concept.latents[0] + FIRST: one for one in seen.concepts}
    assert set(by_latent) == {5, 4}
    assert [place for place, score in enumerate(by_latent[5].scores) if score > 0] == [1, 3]
    assert seen.at(4)[0].concept.latents == (4 - FIRST,) and seen.at(2) == []


def test_neighbours_by_direction_and_by_company():
    directions = torch.eye(3)[[0, 0, 1]] + 0.01 * torch.eye(3)[[2, 1, 2]]
    directions = directions / directions.norm(dim=-1, keepdim=True)
    from scipy.sparse import csr_array

    active = np.zeros((100, 3))
    active[:50, 0] = active[:50, 2] = 1  # concepts 0 and 2 act on the same tokens, 1 on the others
    active[50:, 1] = 1
    found = {
        (a, b): (cosine, phi) for a, b, cosine, phi in nearest_pairs(directions, csr_array(active), num=2)
    }
    assert found[0, 1][0] > 0.99 and found[0, 1][1] == -1.0
    assert found[0, 2][1] == 1.0 and abs(found[0, 2][0]) < 0.1


def test_logit_effects_are_what_adding_the_direction_does(model, texts):
    """The oracle: add a little of the direction after the last block and look at the logits."""
    torch.manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(1, model.d_model), dim=-1)
    batch = collate(texts[:3], pad_id=model.pad_id)
    ((up, down),) = logit_effects(model, direction, "layers.1.resid_post", batch, num=5)
    real = batch.attention_mask.bool()
    with torch.no_grad():
        base = model.forward(batch)[real]
        hidden = model.capture(batch, ["layers.2.resid_post"])["layers.2.resid_post"][real]
        step = 0.01 * hidden.norm(dim=-1, keepdim=True)
        full = torch.zeros(*real.shape, model.d_model)
        full[real] = step * direction
        with site_hook(model, "layers.2.resid_post", lambda h: h + full):
            change = ((model.forward(batch)[real] - base) / step).mean(0)
    change[model.tokenizer.all_special_ids] = 0
    names = [model.tokenizer.decode([token]) for token in change.argsort(descending=True)[:5].tolist()]
    assert [effect.token for effect in up] == names
    assert down[0].token == model.tokenizer.decode([int(change.argmin())])
    assert logit_effects(model, direction, "layers.1.mlp_act", batch) == [((), ())]


def test_another_model_dictionary_or_format_is_refused(
    folder, catalogue, model, other_model, dictionary, tmp_path
):
    with pytest.raises(CatalogueError, match="describes tiny0"):
        Catalogue.open(folder, model=other_model)
    wrong = Dictionary({**dictionary.weights, "threshold": dictionary.threshold + 1}, site="embed")
    with pytest.raises(CatalogueError, match="describes dictionary"):
        Catalogue.open(folder, dictionary=wrong)
    assert (
        Catalogue.open(folder, model=model, dictionary=dictionary).load_dictionary().sha256
        == dictionary.sha256
    )
    with pytest.raises(CatalogueError, match="no concept 'c99'"):
        catalogue.get("c99")
    with pytest.raises(CatalogueError, match="holds no catalogue"):
        Catalogue.open(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    base = sqlite3.connect(tmp_path / "copy" / "catalogue.sqlite")
    base.execute("UPDATE meta SET value = '99' WHERE key = 'version'")
    base.commit()
    base.close()
    with pytest.raises(CatalogueError, match="version 99"):
        Catalogue.open(tmp_path / "copy")
    (tmp_path / "copy" / "catalogue.sqlite").write_bytes(b"no database")
    with pytest.raises(CatalogueError, match="broken file"):
        Catalogue.open(tmp_path / "copy")


def test_an_interrupted_build_goes_on_and_gives_the_same(
    folder, catalogue, model, dictionary, texts, tmp_path, monkeypatch
):
    import fairlead.studies.concepts as study

    def stop(*_args, **_options):
        raise KeyboardInterrupt

    options = {"out": tmp_path / "again", "group": False, "window": WINDOW, "placebo": 8}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(study, "describe", stop)
        build_catalogue(model, dictionary, texts, **options)
    assert (tmp_path / "again.part" / "harvest.safetensors").is_file() and not (tmp_path / "again").exists()
    found = build_catalogue(model, dictionary, texts, **options)
    assert found.entries == catalogue.entries
    assert all(found.examples(c.id) == catalogue.examples(c.id) for c in found.concepts)


def test_a_language_model_labels_and_judges_and_its_answers_survive_an_interruption(
    model, dictionary, texts, tmp_path
):
    """The scripted model calls everything 'w3 texts' and says that every text matches: detection is then one half."""

    class Yes(ScriptedModel):
        asked, limit, seen = 0, 99, ""

        def complete(self, messages, *, schema=None, temperature=0.0, max_tokens=1024):
            if schema is MatchAnswer:
                return MatchAnswer(matches=list(range(1, 200)))
            assert schema is LabelAnswer
            self.asked += 1
            if self.asked > self.limit:
                raise KeyboardInterrupt
            self.seen = as_dicts(messages)[0]["content"]
            return LabelAnswer(label="texts\n with  w3")

    first, options = Yes([], name="scripted"), {"group": False, "window": WINDOW, "placebo": 0}
    first.limit = 5
    with pytest.raises(KeyboardInterrupt):
        build_catalogue(model, dictionary, texts, out=tmp_path / "llm", llm=first, **options)
    assert first.seen.count("<data ") >= 10, "contexts are quoted as data"
    second = Yes([], name="scripted")
    found = build_catalogue(model, dictionary, texts, out=tmp_path / "llm", llm=second, **options)
    assert second.asked == NUM - 5
    for entry in found.entries:
        assert entry.concept.label == "texts with w3" and entry.word_label.startswith("w")
        assert (
            entry.scores.detection == 0.5 and entry.scores.fuzzing == 0.5 and entry.scores.judge == "scripted"
        )
    assert found.meta["placebo"] is None
    assert found.search("w9", num=1)[0].concept.latents == (9 - FIRST,), "the words of the texts still count"


def test_the_placebo_stands_beside_the_scores(catalogue):
    placebo = catalogue.meta["placebo"]
    assert placebo["num"] == NUM
    assert 0.5 < placebo["value"] <= 1 and placebo["value_90"] >= placebo["value"]


def test_random_directions_act_as_often_as_the_latents_they_stand_beside(model, dictionary, texts):
    found = random_dictionary(model, dictionary, texts, num_latents=40)
    rows = texts[300:]
    sums = [GroupSums([[i] for i in range(d.d_dict)], d.d_dict) for d in (dictionary, found)]
    density = []
    for one, summed in zip((dictionary, found), sums, strict=True):
        blocks = list(iter_blocks(model, one, rows, summed, window=WINDOW))
        acts = torch.cat([block.acts[block.used] for block in blocks])
        density.append(float((acts > 0).float().mean()))
    assert density[1] == pytest.approx(density[0], rel=0.5), (
        "37 distinct tokens: a threshold can only fall between them"
    )
    cosine = torch.nn.functional.normalize(found.decoder, dim=-1) @ dictionary.decoder.T
    assert cosine.abs().mean() < 0.3


def test_the_page_shows_every_concept_and_escapes_what_it_shows(folder, catalogue, model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    base = sqlite3.connect(copy / "catalogue.sqlite")
    place, entry = base.execute("SELECT place, entry FROM concepts ORDER BY place LIMIT 1").fetchone()
    record = json.loads(entry)
    record["concept"]["label"] = "<script>alert(1)</script>"
    base.execute("UPDATE concepts SET entry = ? WHERE place = ?", (json.dumps(record), place))
    base.commit()
    base.close()
    page = write_catalogue_page(tmp_path / "page.html", Catalogue.open(copy)).read_text("utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert all(f'id="{concept.id}"' in page for concept in catalogue.concepts)
    assert "http://" not in page and "https://" not in page, "the page loads nothing"
    text = Encoded([20, 5, 21], [False, True, True], 0, Row(text="x"))
    seen = inspect_text(catalogue, model, text)
    shown = write_inspection(tmp_path / "inspect.html", catalogue, seen).read_text("utf-8")
    assert seen.concepts[0].concept.id in shown and 'class="h4">w5<' in shown


def test_a_dictionary_from_elsewhere_is_copied_so_that_the_catalogue_stays_usable(
    model, dictionary, texts, tmp_path, monkeypatch
):
    """By its `hf:` name, with a site that only the caller knows: neither stands in a path."""
    foreign = tmp_path / "hub" / "suite"
    config = json.loads((dictionary.save(foreign) / "cfg.json").read_text())
    own = {"format", "version", "site", "sha256", "model_fingerprint", "hook_name", "metadata"}
    (foreign / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if k not in own}))
    monkeypatch.setattr("fairlead.dictionaries.loading.fetch_dictionary", lambda name: foreign)
    given = load_dictionary("hf:someone/suite", site="embed")
    options = {"group": False, "window": WINDOW, "placebo": 0, "max_rows": 200}
    made = build_catalogue(model, given, texts, out=tmp_path / "far", **options)
    shutil.rmtree(foreign)
    assert given.source == "hf:someone/suite"
    opened = Catalogue.open(made.folder)
    assert opened.load_dictionary().sha256 == given.sha256 and opened.site == "embed"
    assert len(inspect_text(opened, model, texts[1])[0]) > 0

    near = dictionary.save(tmp_path / "near")
    made = build_catalogue(model, near, texts, out=tmp_path / "own", **options)
    assert not (made.folder / "dictionary").exists(), "a folder of Fairlead's own is pointed at, not copied"
    assert made.dictionary_path == near.resolve()
    dictionary.source = ""


def test_a_blocks_concept_acts_by_its_norm_whatever_the_sign_of_its_codes(model, texts, tmp_path):
    """A block over two embeddings, turned so that both its codes are negative on one of the tokens."""
    rows = model.hf.get_input_embeddings().weight.detach()
    unit = torch.linalg.qr(rows[FIRST : FIRST + 4].T).Q.T  # two blocks of two latents
    turn = -torch.linalg.qr(rows[FIRST : FIRST + 2] @ unit[:2].T).Q.T
    unit = torch.cat([turn @ unit[:2], unit[2:]])
    weights = {
        "W_enc": unit.T.contiguous(),
        "W_dec": unit.contiguous(),
        "b_enc": torch.zeros(4),
        "b_dec": torch.zeros(unit.shape[1]),
        "threshold": torch.tensor([0.9, 0.9, 1e3, 1e3]) * rows[FIRST : FIRST + 2].norm(dim=-1).min(),
    }
    blocks = BlockSparse(weights, block=2, site="embed", model_fingerprint=model.fingerprint)
    codes = blocks.encode(rows[FIRST : FIRST + 2])
    assert (codes[0, :2] <= 1e-6).all(), f"the planted codes are not negative: {codes}"
    made = build_catalogue(
        model, blocks, texts, out=tmp_path / "blocks", group=False, window=WINDOW, placebo=4
    )
    (concept,) = made.concepts
    assert concept.latents == (0, 1), "a block is one concept"
    tokens = torch.tensor([token for row in texts for token in row.input_ids[1:]])
    acts = blocks.block_acts(rows)[:, 0]
    numbers = made.statistics(concept.id)
    assert numbers.density == pytest.approx(float((acts[tokens] > 0).float().mean()))
    assert numbers.mean == pytest.approx(float(acts[tokens].mean()), rel=1e-4)
    torch.testing.assert_close(
        blocks.strengths(blocks.encode_latents(rows, [3, 1, 0]), [3, 1, 0])[:, 1], acts
    )


def test_a_store_gives_the_catalogue_that_the_model_gives(
    catalogue, model, dictionary, texts, tmp_path, monkeypatch
):
    store = ActivationStore.harvest(model, texts, ["embed"], tmp_path / "stores")
    real = type(model).capture

    def capture(self, batch, sites, **options):
        sites = list(sites)
        assert "embed" not in [str(site) for site in sites], "the store is read, the model is not run"
        return real(self, batch, sites, **options)

    monkeypatch.setattr(type(model), "capture", capture)
    options = {"group": False, "window": WINDOW, "placebo": 8}
    found = build_catalogue(model, dictionary, store.folder, out=tmp_path / "c", **options)
    assert found.entries == catalogue.entries and found.meta["data"] == str(store.folder)
    assert found.meta["placebo"] == catalogue.meta["placebo"]
    with pytest.raises(ConfigError, match="max_length"):
        build_catalogue(model, dictionary, store, out=tmp_path / "d", max_length=9, **options)


def test_the_placebo_is_judged_by_the_same_language_model(model, dictionary, texts, tmp_path):
    """A judge that says yes to everything scores one half, of real concepts and of random directions; words score otherwise."""

    class Yes(ScriptedModel):
        def complete(self, messages, *, schema=None, temperature=0.0, max_tokens=1024):
            if schema is MatchAnswer:
                return MatchAnswer(matches=list(range(1, 200)))
            return LabelAnswer(label="anything")

    options = {"group": False, "window": WINDOW, "placebo": 8, "llm": Yes([], name="scripted")}
    found = build_catalogue(model, dictionary, texts, out=tmp_path / "all", **options)
    placebo = found.meta["placebo"]
    assert placebo["judge"] == "scripted" and placebo["value"] == placebo["value_90"] == 0.5
    assert placebo["words"]["value"] > 0.5
    page = write_catalogue_page(tmp_path / "page.html", found).read_text("utf-8")
    assert "0 labels beat nine in ten labels of random directions" in page, "one half is not above one half"

    few = build_catalogue(model, dictionary, texts, out=tmp_path / "few", llm_concepts=3, **options)
    assert few.meta["placebo"]["num"] == 3, "the placebo is asked about as few"
    page = write_catalogue_page(tmp_path / "few.html", few).read_text("utf-8")
    worded = [entry for entry in few.entries if entry.scores.judge == "words"]
    beaten = sum(entry.scores.value > few.meta["placebo"]["words"]["value_90"] for entry in worded)
    assert len(worded) == NUM - 3 and beaten < len(worded) == sum(e.scores.value > 0.5 for e in worded)
    assert f"{beaten} labels beat nine in ten" in page, "labels of words are held against labels of words"


def test_a_concept_is_found_by_what_it_promotes(catalogue, tmp_path):
    """Neither its texts nor its label hold the word."""
    entries = list(catalogue.entries)
    entries[3] = entries[3].model_copy(update={"promoted": (TokenEffect(token=" zanzibar", value=3.0),)})
    (tmp_path / "copy").mkdir()
    write_database(tmp_path / "copy" / "catalogue.sqlite", entries, meta=catalogue.meta)
    hits = Catalogue.open(tmp_path / "copy").search("Zanzibar", num=3)
    assert [hit.concept.id for hit in hits] == [entries[3].concept.id]
    assert not catalogue.search("Zanzibar", num=3)
