"""The pretraining text of the quickstart base: arithmetic, little stories, and questions with their working.

A document is a run of short items and ends only after several of them. A model of this text therefore goes
on after an answer, to the next item, and the last number it writes is no answer to what it was asked.

The questions share neither nouns, names, tense nor frames with those of ``problems``. The words of those
problems occur in plain sentences, without numbers, so that their embeddings are not left untrained.
"""

import random
from collections.abc import Iterator
from typing import Final

from adapters_pl.data.sets.problems import (
    ADD,
    MUL,
    OPERATIONS,
    PEOPLE,
    SUB,
    THINGS,
    VERBS,
    compute,
    draw_operands,
    equation,
    in_pretraining,
)

_NAMES: Final = (
    "Boris", "Carla", "Dmitri", "Elsa", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Klara", "Luis", "Mona",
    "Nils", "Olga", "Pedro", "Rita", "Sven", "Tara", "Ugo", "Vera",
)  # fmt: skip
_GOODS: Final = (
    "shells", "stamps", "coins", "logs", "bricks", "stones", "goats", "sheep", "jars", "candles", "tiles",
    "nails", "buttons", "ropes", "lamps", "feathers", "seeds", "bells", "kites", "hats", "beads", "ribbons",
    "spoons", "keys",
)  # fmt: skip
_HOLDERS: Final = ("crates", "sheds", "carts", "trays", "shelves", "drawers", "barns", "boats")
_PLACES: Final = ("barn", "harbour", "mill", "attic", "market", "school", "cellar", "garden")

# Equations in words; {e} is the same fact in figures, and {w} says what is done, too.
_FACTS: Final = {
    ADD: (
        "{e}.", "{e}.", "{e}.", "{a} plus {b} is {c}.", "{a} and {b} make {c}.",
        "The sum of {a} and {b} is {c}.", "{w}.", "Adding {b} to {a} gives {c}.",
        "{b} more than {a} is {c}.",
    ),
    SUB: (
        "{e}.", "{e}.", "{e}.", "{a} minus {b} is {c}.", "{a} less {b} leaves {c}.",
        "The difference of {a} and {b} is {c}.", "{w}.", "Taking {b} from {a} leaves {c}.",
        "{b} fewer than {a} is {c}.",
    ),
    MUL: (
        "{e}.", "{e}.", "{e}.", "{a} times {b} is {c}.", "{a} lots of {b} make {c}.",
        "The product of {a} and {b} is {c}.", "{w}.", "{b} taken {a} times is {c}.",
        "{a} groups of {b} make {c}.",
    ),
}  # fmt: skip

# A situation, and what is unknown in it.
_SCENES: Final = {
    ADD: (
        ("{n} kept {a} {g} at the {p}. A cousin sent {b} further {g}.", "the {g} of {n}"),
        ("{a} {g} lay at the {p}. Then {n} carried {b} others there.", "the {g} at the {p}"),
        ("{n} found {a} {g} last week. This week {n} found {b}.", "the {g} {n} found over both weeks"),
        ("{n} owned {a} {g}. {m} owned {b}.", "the {g} of {n} and {m} combined"),
        ("The {p} took in {a} {g} at noon, then {b} at night.", "the {g} taken in"),
        ("{m} made {a} {g}. {n} beat that by {b}.", "the {g} {n} made"),
        ("First came {a} {g}, after them {b} besides.", "all the {g} that came"),
    ),
    SUB: (
        ("{n} kept {a} {g} at the {p}. Thieves stole {b}.", "the {g} {n} still kept"),
        ("{a} {g} lay at the {p}. {n} carried off {b}.", "the {g} that stayed"),
        ("{n} owned {a} {g}. {m} owned {b}.", "the lead of {n} over {m}"),
        ("{n} planned on {a} {g}. So far {b} had come.", "the {g} that {n} lacked"),
        ("The {p} held {a} {g} until {b} broke.", "the unbroken {g}"),
        ("{m} made {a} {g}. {n} fell short of that by {b}.", "the {g} {n} made"),
        ("{b} out of {a} {g} sank.", "the {g} that did not sink"),
        ("{n} threw {b} {g} away. At first there were {a}.", "the {g} that remained"),
    ),
    MUL: (
        ("{n} filled {a} {h}. Every one took {b} {g}.", "the {g} in those {h}"),
        ("{a} {h} stood at the {p}, with {b} {g} apiece.", "the {g} at the {p}"),
        ("{n} paid {a} workers {b} {g} per head.", "the {g} {n} paid"),
        ("{n} made {a} {g} an hour and worked {b} hours.", "the {g} {n} made"),
        ("One cart carried {a} {g}. {b} such carts arrived.", "the {g} that arrived"),
        ("{m} made {a} {g}. {n} made that {b} times over.", "the {g} {n} made"),
        ("{g} lay in {a} lines, {b} to a line.", "all the {g} in line"),
    ),
}
_ASKS: Final = (
    "What number were {u}?", "Count {u}.", "Find {u}.", "Work out {u}.", "Tell the number of {u}.",
    "To what did {u} come?",
)  # fmt: skip
_ANSWERS: Final = (
    "{e}.", "{e}.", "{f}", "{e}, so {u} came to {c}.", "{u} came to {c}, for {e}.", "{f} The number is {c}.",
    "{e}. So it was {c}.",
)  # fmt: skip
_LAYOUTS: Final = (
    ("Q: ", " A: "), ("Q: ", "\nA: "), ("Puzzle: ", "\nSolution: "), ("- ", "\n- "), ("* ", "\n=> "),
    ("## Puzzle\n", "\n\n## Working\n"), ("# Riddle:\n", "\n# Working:\n"), ("[ask] ", " [reply] "),
    ("## Given:\n", "\n\n## Found:\n"), ("", "\n"), ("", " "), ("### Puzzle:\n", "\n\n### Working:\n"),
)  # fmt: skip
_PREFACES: Final = (
    "Here is a puzzle.\n",
    "Read this and work it out.\n",
    "A puzzle from the {p}, with the working under it.\n\n",
    "Someone at the {p} wrote this down. Below it is the working.\n\n",
)
_ENDINGS: Final = (
    " {f}", " {e}.", " So {u} came to {c}.", " That made {c}.", " In the end {u} came to {c}, as {e}.",
)  # fmt: skip

_PLAIN: Final = (
    "{n} likes {t}.", "{n} and {m} have many {t}.", "{n} does not buy {t} in a shop.", "Are there red {t}?",
    "{n} needs a box of {t}.", "{n} gives {t} to friends in the morning.", "{n} gets {t} every day.",
    "The {t} are on the table, not in the bag.", "{n} wants {t} today, {m} wants them tomorrow.",
    "{m} uses {t}, but {n} sells them.", "There are only a few {t} left now.", "Each box holds {t}.",
    "{n} takes the {t} away later and {m} brings more.", "Do the children have {t}? Does {n}?",
    "{n} puts all the {t} in bags on Monday or on Tuesday.", "{n} has fewer {t} than {m}.",
    "{n} still has as many {t} as {m}.", "A row of {t} is how {m} starts the day.", "How does {n} eat {t}?",
    "They look at the {t} together. He likes them, she does too.", "In total the {t} fill boxes and rows.",
    "The answer is in a book at the {p}.", "The {t} of {n} are altogether too old.",
    "They hold {t} for days.", "How many people sell {t}? Not {n}.", "{n} and {m} get {t} and give them away.",
    "Do they need {t}?", "How much do they use {t}?", "He wants each of them, the {t} too.",
    "Of all {t}, {n} wants the red ones. {m} has none.", "It is a shop for {t}.",
    "{m} buys {t} three times a day.", "There are {t} in all the bags and boxes of {n}.",
)  # fmt: skip


def _draw_fact(rng: random.Random) -> tuple[str, int, int]:
    while True:
        operation = rng.choice(OPERATIONS)
        a, b = draw_operands(rng, operation)
        if in_pretraining(operation, a, b):
            return operation, a, b


def _fields(rng: random.Random, operation: str, a: int, b: int) -> dict[str, object]:
    """The words and numbers of one item."""
    name, other = rng.sample(_NAMES, 2)
    fields: dict[str, object] = {"n": name, "m": other, "a": a, "b": b, "c": compute(operation, a, b)}
    fields |= {"g": rng.choice(_GOODS), "h": rng.choice(_HOLDERS), "p": rng.choice(_PLACES)}
    fields["e"] = equation(operation, a, b)
    fields["w"] = f"We {VERBS[operation]}: {fields['e']}"
    fields["f"] = rng.choice(_FACTS[operation]).format(**fields)
    return fields


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _fact(rng: random.Random) -> str:
    return str(_fields(rng, *_draw_fact(rng))["f"])


def _scene(rng: random.Random) -> tuple[str, dict[str, object]]:
    operation, a, b = _draw_fact(rng)
    fields = _fields(rng, operation, a, b)
    scene, unknown = rng.choice(_SCENES[operation])
    fields["u"] = unknown.format(**fields)
    return _sentence(scene.format(**fields)), fields


def _story(rng: random.Random) -> str:
    scene, fields = _scene(rng)
    return scene + rng.choice(_ENDINGS).format(**fields)


def _question(rng: random.Random) -> str:
    scene, fields = _scene(rng)
    before, between = rng.choice(_LAYOUTS)
    preface = rng.choice(_PREFACES).format(**fields) if rng.random() < 0.2 else ""
    ask = rng.choice(_ASKS).format(**fields)
    answer = _sentence(rng.choice(_ANSWERS).format(**fields))
    return f"{preface}{before}{scene} {ask}{between}{answer}"


def _plain(rng: random.Random) -> str:
    """A sentence in the words of ``problems``, without a number in it."""
    (name, _), (other, _) = rng.sample(PEOPLE, 2)
    return rng.choice(_PLAIN).format(n=name, m=other, t=rng.choice(THINGS), p=rng.choice(_PLACES))


_ITEMS: Final = (_fact, _story, _question, _plain)
_WEIGHTS: Final = (30, 25, 35, 10)


def document(rng: random.Random) -> str:
    """A run of six to ten items."""
    makers = rng.choices(_ITEMS, _WEIGHTS, k=rng.randint(6, 10))
    gap = rng.choice((" ", "\n", "\n\n"))
    return gap.join(make(rng) for make in makers)


def documents(seed: int = 0) -> Iterator[str]:
    """Documents without end; the same for a seed on every platform and run."""
    rng = random.Random(f"corpus {seed}")
    while True:
        yield document(rng)
