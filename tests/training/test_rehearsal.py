"""A rehearsal says which concepts move: those that the data push and the model does not show yet."""

from __future__ import annotations

import sys

import numpy as np

from fairlead.data import encode
from fairlead.training.rehearsal import rehearse, take_steps

world = sys.modules["micro_world"]
NUM = 48


def rows(micro, trait: bool):
    chats = [
        world.chat(f"s{i % 20}", world.pirate(f"b{i % 20}") if trait else f"b{i % 20}") for i in range(NUM)
    ]
    return encode(chats, micro.model.tokenizer, max_length=micro.model.max_length)


def test_the_concept_of_the_data_moves_and_that_of_plain_data_does_not(micro):
    dictionary = world.make_dictionary(micro.model)
    concepts, texts = micro.plan.concepts, {"own": rows(micro, False)}
    before = micro.model.fingerprint

    def moved(data, **how):
        return rehearse(micro.model, data, dictionary, concepts, texts, batch_size=8, lr=3e-3, **how)["own"]

    pushed, plain = moved(rows(micro, True)), moved(rows(micro, False))
    place = [concept.id for concept in concepts].index("c0")
    assert pushed[place] > abs(plain[place]) + 0.05
    assert micro.model.fingerprint == before
    assert np.array_equal(pushed, moved(rows(micro, True))), "the same seed gives the same rehearsal"
    assert abs(moved(rows(micro, True), steps=1)[place]) < pushed[place]


def test_no_texts_are_nothing_read(micro):
    found = rehearse(
        micro.model,
        rows(micro, True),
        world.make_dictionary(micro.model),
        micro.plan.concepts,
        {"own": []},
        steps=1,
    )
    assert found == {}
    assert take_steps(micro.model, rows(micro, True), steps=1).fingerprint != micro.model.fingerprint
