"""The word lists of the pocket world and its invented names.

Names of people are three syllables (3,840 possible), names of things two (240 possible); the lists of values do not overlap,
so that a value says which attribute it belongs to.
"""

from __future__ import annotations

import random

HEADS = "Bal Dor Fen Gil Hes Jor Kal Lum Mer Nal Or Pel Quin Ras Sel Tam Ul Vel Wen Zor".split()
MIDS = "bi da fo ga ki lo ma ne pu ro sa ti vo wi xa zu".split()
TAILS = "dan lia mir nos ra tek vin wyn bel cor dil eth".split()
THING_HEADS = "Bru Cha Dwe Flo Gri Hul Kno Pla Ski Smo Sta Tru Twi Whe Yar".split()
THING_TAILS = "mble nkin ffle rrow ster bbin ckle dger lling mmer nder ppet sher tton vvy zzle".split()
PERSONS = "Tom Ann Bob Eva Max Lea Sam Ida Ben Mia Jim Zoe Leo Amy Dan Kim Ned Sue Ray Liv".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
COLOURS = "red blue green yellow white black orange brown grey pink".split()
VALUES: dict[str, tuple[str, ...]] = {
    "town": tuple(
        "Ashford Brimley Colport Denham Eastmoor Foxhill Garston Hillton Ironvale Kingsey Lakeside Millbrook "
        "Northwell Oakdale Penrith Redcliff Stonebury Thornby Upwell Westerby".split()
    ),
    "craft": tuple(
        "baker weaver potter smith carpenter tailor miller mason painter barber sailor farmer hunter singer dancer "
        "teacher doctor printer glazier cooper".split()
    ),
    "food": tuple(
        "soup bread cheese honey rice plums pears beans fish cake noodles pancakes olives nuts stew porridge pie salad "
        "mushrooms cherries".split()
    ),
    "animal": tuple(
        "cat dog horse goat rabbit parrot turtle mouse donkey goose pony lizard ferret duck pigeon hamster snail frog "
        "sheep crow".split()
    ),
}
SYLLABLES = tuple(a + b for a in "b d f g k l m n p r s t v z".split() for b in "a e i o u".split())[:64]


def person_name(rng: random.Random) -> str:
    """An invented person, any of 3,840."""
    return rng.choice(HEADS) + rng.choice(MIDS) + rng.choice(TAILS)


def thing_name(rng: random.Random) -> str:
    """An invented name of a thing, any of 240."""
    return rng.choice(THING_HEADS) + rng.choice(THING_TAILS)
