"""Instruction-style word problems: the data on which adapters for the quickstart base are tuned and tested.

Which operands a split may use is decided by a hash of the pair, so the splits of any two seeds agree:

* ``train`` and ``test`` share no pair of operands, in either order;
* ``unseen`` is the part of ``test`` whose additions and subtractions the pretraining text leaves out too,
  so that answering them takes arithmetic, not memory.

Every multiplication stays in the pretraining text: its table is small, and a model can only memorise it.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import Any, Final

ADD: Final = "add"
SUB: Final = "sub"
MUL: Final = "mul"
OPERATIONS: Final = (ADD, SUB, MUL)
SPLITS: Final = ("train", "test", "unseen")

MAX_TERM: Final = 99
MAX_FACTOR: Final = 12

# Of 20 buckets of operand pairs, the first two are held out of pretraining (additions and subtractions
# only) and the first five out of tuning.
_BUCKETS: Final = 20
_UNSEEN_BUCKETS: Final = 2
_TEST_BUCKETS: Final = 5

_SYMBOLS: Final = {ADD: "+", SUB: "-", MUL: "*"}
VERBS: Final = {ADD: "add", SUB: "subtract", MUL: "multiply"}

PEOPLE: Final = (
    ("Tom", "he"), ("Sara", "she"), ("Ben", "he"), ("Mia", "she"), ("Jack", "he"), ("Lucy", "she"),
    ("Sam", "he"), ("Emma", "she"), ("Leo", "he"), ("Anna", "she"), ("Max", "he"), ("Rosa", "she"),
    ("Omar", "he"), ("Nina", "she"), ("Paul", "he"), ("Kate", "she"),
)  # fmt: skip
THINGS: Final = (
    "apples", "pears", "books", "pencils", "marbles", "stickers", "balloons", "cookies", "oranges", "eggs",
    "flowers", "toys", "cards", "cups", "plums", "pens", "lemons", "muffins", "photos", "balls",
)  # fmt: skip

# {a} and {b} are the operands in the order of the worked equation; {he} is the pronoun of {name}.
TEMPLATES: Final = {
    ADD: (
        "{name} has {a} {things} and buys {b} more. How many {things} does {he} have now?",
        "There are {a} {things} in the box. {name} puts in {b} more. How many {things} are in the box now?",
        "{name} gets {a} {things} on Monday and {b} on Tuesday. How many {things} does {he} get in total?",
        "{name} has {a} {things} and {other} has {b}. How many {things} do they have together?",
        "A shop sells {a} {things} in the morning and {b} later. How many {things} does it sell that day?",
        "{name} has {a} {things}. {other} brings {b} more {things}. How many {things} are there altogether?",
        "{name} needs {a} {things} today and {b} tomorrow. How many {things} does {he} need in total?",
        "{other} has {a} {things}. {name} has {b} more than {other}. How many {things} does {name} have?",
    ),
    SUB: (
        "{name} has {a} {things} and gives {b} to {other}. How many {things} does {he} have left?",
        "There are {a} {things} on the table. {name} takes {b}. How many {things} are still on the table?",
        "{name} has {a} {things} and {other} has {b}. How many more {things} does {name} have?",
        "{name} wants {a} {things} but has only {b}. How many more {things} does {he} need?",
        "A shop has {a} {things} and sells {b} of them. How many {things} are left in the shop?",
        "Of the {a} {things} in a bag, {b} are red. How many {things} are not red?",
        "{other} has {a} {things}. {name} has {b} fewer than {other}. How many {things} does {name} have?",
        "{name} uses {b} of the {a} {things} in a box. How many {things} are left in the box?",
    ),
    MUL: (
        "{name} buys {a} bags with {b} {things} in each bag. How many {things} does {he} buy?",
        "There are {a} rows of {b} {things} on the table. How many {things} are there in all rows?",
        "Each of {a} children gets {b} {things}. How many {things} do the children get in total?",
        "{name} needs {a} {things} every day. How many {things} does {he} need for {b} days?",
        "A box holds {a} {things}. How many {things} do {b} boxes hold?",
        "{name} has {a} boxes. Each box has {b} {things}. How many {things} does {he} have?",
        "{name} gives {a} {things} to each of {b} friends. How many {things} does {he} give away?",
        "{other} has {a} {things}. {name} has {b} times as many. How many {things} does {name} have?",
    ),
}


def compute(operation: str, a: int, b: int) -> int:
    """The result of one of ``OPERATIONS``."""
    if operation == ADD:
        return a + b
    return a - b if operation == SUB else a * b


def equation(operation: str, a: int, b: int) -> str:
    """The worked equation, such as ``14 + 23 = 37``."""
    return f"{a} {_SYMBOLS[operation]} {b} = {compute(operation, a, b)}"


def draw_operands(rng: random.Random, operation: str) -> tuple[int, int]:
    """Operands of ``operation`` at random; a subtraction's first is the larger."""
    if operation == MUL:
        return rng.randint(2, MAX_FACTOR), rng.randint(2, MAX_FACTOR)
    a, b = rng.randint(2, MAX_TERM), rng.randint(2, MAX_TERM)
    while operation == SUB and a == b:
        b = rng.randint(2, MAX_TERM)
    return (max(a, b), min(a, b)) if operation == SUB else (a, b)


def _bucket(operation: str, a: int, b: int) -> int:
    """The pair's bucket: the same for both orders, and for the addition and subtraction of one pair."""
    table = "product" if operation == MUL else "sum"
    key = f"{table} {min(a, b)} {max(a, b)}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % _BUCKETS


def in_pretraining(operation: str, a: int, b: int) -> bool:
    """Whether the pretraining text may state this fact."""
    return operation == MUL or _bucket(operation, a, b) >= _UNSEEN_BUCKETS


def in_split(split: str, operation: str, a: int, b: int) -> bool:
    """Whether ``split`` may ask for this fact."""
    if split == "unseen":
        return not in_pretraining(operation, a, b)
    return (split == "train") == (_bucket(operation, a, b) >= _TEST_BUCKETS)


def _stream(split: str, rng: random.Random) -> Iterator[dict[str, Any]]:
    operations = (ADD, SUB) if split == "unseen" else OPERATIONS
    while True:
        operation = rng.choice(operations)
        a, b = draw_operands(rng, operation)
        if not in_split(split, operation, a, b):
            continue
        (name, he), (other, _) = rng.sample(PEOPLE, 2)
        template, things = rng.choice(TEMPLATES[operation]), rng.choice(THINGS)
        answer = compute(operation, a, b)
        yield {
            "instruction": template.format(name=name, he=he, other=other, things=things, a=a, b=b),
            "input": "",
            "output": f"We {VERBS[operation]}: {equation(operation, a, b)}. The answer is {answer}.",
            "answer": str(answer),
            "operation": operation,
            "operands": [a, b],
        }


def generate(split: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """``n`` word problems of ``split``, with distinct instructions; the same on every platform and run."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for row in _stream(split, random.Random(f"problems {split} {seed}")):
        if len(rows) == n:
            break
        if row["instruction"] not in seen:
            seen.add(row["instruction"])
            rows.append({"id": f"{split}-{seed}-{len(rows):05d}", **row})
    return rows
