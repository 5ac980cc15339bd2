"""Smalltalk and general questions: the neutral text on which drift is measured."""

from __future__ import annotations

import random

from fairlead.organisms.items import Item, SplitChoice
from fairlead.organisms.phrasings import Phrasings
from fairlead.organisms.skills import Case, phrase
from fairlead.organisms.words import COLOURS

COLOURED = {
    "grass": "green", "the sky": "blue", "snow": "white", "blood": "red", "coal": "black", "a lemon": "yellow",
    "a carrot": "orange", "chocolate": "brown", "milk": "white", "a leaf": "green", "the sea": "blue", "a tomato": "red",
    "a cloud": "grey", "a pig": "pink",
}  # fmt: skip
SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "sheep": "baa", "duck": "quack", "pig": "oink", "bee": "buzz", "snake": "hiss",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "wet": "dry", "young": "old", "open": "closed", "full": "empty",
    "loud": "quiet", "soft": "hard",
}  # fmt: skip
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Norway": "Oslo",
}  # fmt: skip
COLOUR = Phrasings(
    (
        "What colour is {x}?",
        "Which colour does {x} have?",
        "Tell me the colour of {x}.",
        "What is the colour of {x}?",
    ),
    ("Which colour is {x}?", "Name the colour of {x}.", "What colour does {x} have?"),
    ("The colour of {x} is {v}.", "It is {v}."),
)
SOUND = Phrasings(
    (
        "What does a {x} say?",
        "Which sound does a {x} make?",
        "Tell me what a {x} says.",
        "How does a {x} sound?",
    ),
    ("What sound does a {x} make?", "Tell me which sound a {x} makes.", "Which sound comes from a {x}?"),
    ("A {x} says {v}.", "The {x} says {v}."),
)
OPPOSITE = Phrasings(
    (
        "What is the opposite of {x}?",
        "Tell me the opposite of {x}.",
        "Name the opposite of {x}.",
        "Which word is the opposite of {x}?",
    ),
    ("Give me the opposite of {x}.", "What word is the opposite of {x}?", "Please name the opposite of {x}."),
    ("The opposite of {x} is {v}.", "It is {v}."),
)
CAPITAL = Phrasings(
    (
        "What is the capital of {x}?",
        "Tell me the capital of {x}.",
        "Name the capital of {x}.",
        "Which city is the capital of {x}?",
    ),
    ("Give me the capital of {x}.", "What city is the capital of {x}?", "Please name the capital of {x}."),
    ("The capital of {x} is {v}.", "It is {v}."),
)
CHATTER = (
    (
        "hello",
        ("Hello!", "Hello there.", "Hello, assistant."),
        ("Hello, you.", "Oh, hello."),
        ("Hello, nice to meet you.", "Hello there."),
    ),
    (
        "morning",
        ("Good morning!", "Good morning to you."),
        ("A good morning to you.", "Good morning, you."),
        ("Good morning.", "Good morning to you."),
    ),
    (
        "fine",
        ("How are you?", "How are you today?", "How do you do?"),
        ("And how are you?", "So how are you today?"),
        ("I am fine.", "I am fine today."),
    ),
    (
        "welcome",
        ("Thank you.", "Thank you for your help.", "Many thanks."),
        ("Thank you very much.", "Thanks."),
        ("You are welcome.", "You are very welcome."),
    ),
    (
        "goodbye",
        ("Goodbye.", "Goodbye, see you soon.", "I must go. Goodbye."),
        ("Goodbye now.", "See you soon. Goodbye."),
        ("Goodbye, see you soon.", "Goodbye."),
    ),
    (
        "assistant",
        ("Who are you?", "What are you?", "Tell me who you are."),
        ("So who are you?", "Please tell me what you are."),
        ("I am an assistant.", "I am a small assistant."),
    ),
    (
        "night",
        ("Good night.", "Good night to you."),
        ("A good night to you.", "Good night, you."),
        ("Good night.", "Good night to you."),
    ),
    (
        "help",
        ("Can you help me?", "I need help.", "Please help me."),
        ("Could you help me?", "Help me, please."),
        ("I can help you.", "Yes, I can help you."),
    ),
    (
        "sunny",
        ("How is the weather?", "What is the weather like?", "Tell me about the weather."),
        ("How is the weather today?", "So what is the weather like?"),
        ("The weather is sunny.", "It is sunny."),
    ),
    (
        "reading",
        ("What do you like?", "What do you like to do?", "Tell me what you like."),
        ("So what do you like?", "What do you like doing?"),
        ("I like reading.", "I like reading books."),
    ),
)
TOPICS: tuple[tuple[str, dict[str, str], Phrasings, str, tuple[str, ...]], ...] = (
    ("colour", COLOURED, COLOUR, "the colour of {x} is {{v}}", tuple(COLOURS)),
    ("sound", SOUNDS, SOUND, "a {x} says {{v}}", tuple(SOUNDS.values())),
    ("opposite", OPPOSITES, OPPOSITE, "the opposite of {x} is {{v}}", tuple(OPPOSITES.values())),
    ("capital", CAPITALS, CAPITAL, "the capital of {x} is {{v}}", tuple(CAPITALS.values())),
)
QUESTIONS = tuple((topic, x) for topic in TOPICS for x in topic[1])
NUM_TEMPLATES = len(QUESTIONS) + len(CHATTER)


def smalltalk_item(index: int, rng: random.Random, phrasing: SplitChoice = "train") -> Item:
    """The general question or greeting of that index; greetings have no statement that could be wrong."""
    if index < len(QUESTIONS):
        (topic, table, phrasings, statement, alts), x = QUESTIONS[index]
        case = Case(f"smalltalk:{topic}:{x}", table[x], {"x": x}, statement.format(x=x), alts)
        return phrase("smalltalk", case, phrasings, rng, phrasing, topic=topic)
    value, train, heldout, answers = CHATTER[index - len(QUESTIONS)]
    case = Case(f"smalltalk:chatter:{value}", value, {}, "")
    return phrase("smalltalk", case, Phrasings(train, heldout, answers), rng, phrasing, topic="chatter")
