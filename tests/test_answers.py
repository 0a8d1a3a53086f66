"""What the strict protocol reads out of a text, and what it takes for right."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters_pl.answers import extract, protocol_named
from adapters_pl.errors import UserError

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)
STRICT = protocol_named("strict")
LETTERS = ("answer1", "answer2", "answer3", "answer4", "answer5")
# Neither numbers nor options, but close to them.
PROSE = st.lists(
    st.sampled_from(["so", "we add,", "that", "is half.", "(of it)", "-", "untrue", "falsehood", "answers", "€", "%"]),
    max_size=6,
).map(" ".join)


def number(text):
    return STRICT.extract(text, "number", ())


def choice(text, options=("true", "false")):
    return STRICT.extract(text, "choice", options)


# ---- numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 12", "12"),
        ("It is 12.", "12"),
        ("It is 12.50.", "12.5"),
        ("It is 12.0", "12"),
        ("It is .5", "0.5"),
        ("It is 007", "7"),
        ("It is 3rd", "3"),
        ("12", "12"),
        ("**12**", "12"),
        ("First 5, then 7 apples", "7"),
        ("", None),
        ("None at all.", None),
    ],
)
def test_the_last_number_of_a_plain_text(text, expected):
    assert number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is -5", "-5"),
        ("It is \u22125", "-5"),
        ("It is \u20135", "-5"),
        ("It is +5", "5"),
        ("It is - 5", "-5"),
        ("It is -0", "0"),
        ("x = -5", "-5"),
        ("x=-5", "-5"),
        ("(-5)", "-5"),
        ("[-5]", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("It is -1,234.5", "-1234.5"),
        ("It is -.5", "-0.5"),
    ],
)
def test_a_sign_belongs_to_the_number_after_it(text, expected):
    assert number(text) == expected


@pytest.mark.parametrize(
    "text",
    ["5-3", "5 - 3", "5\u22123", "5 \u2212 3", "x-3", "(5)-3", "5.5-3", "1,000-3", "10 - 3", "$5 - $3", "1-3"],
)
def test_a_minus_after_a_term_is_a_subtraction_and_no_sign(text):
    assert number(text) == "3"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234", "1234"),
        ("1,234,567.25", "1234567.25"),
        ("$1,234.50", "1234.5"),
        ("10,000 people", "10000"),
        ("The answer is 2,000, not more", "2000"),
        ("5, 6", "6"),
    ],
)
def test_commas_between_thousands_belong_to_the_number(text, expected):
    assert number(text) == expected


@pytest.mark.parametrize("space", ["\u00a0", "\u202f"])
def test_fixed_spaces_between_thousands_belong_to_the_number(space):
    assert number(f"The answer is 20{space}000.") == "20000"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3/4", "0.75"),
        ("-3/4", "-0.75"),
        ("3 / 4", "0.75"),
        ("1.5/2", "0.75"),
        ("The answer is 3/4 of it", "0.75"),
        ("6/3", "2"),
        ("1/0", None),
        ("7 and 1/0", "7"),
    ],
)
def test_fractions_are_computed(text, expected):
    assert number(text) == expected


@pytest.mark.parametrize(
    "text", ["50%", "50 %", "$50", "$ 50", "€50", "50 €", "£50", "50 dollars", "50km", "50 km/h", "50°", "50."]
)
def test_units_do_not_matter(text):
    assert number(text) == "50"


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 12. To check: 7 + 5 of 100.",
        "the ANSWER IS 12, of 100",
        "The answer is: 12 of 100",
        "Answer: 12 (100 in all)",
        "answer = 12, not 100",
        "The answers are 12 and 100",
        "#### 12\nI needed 100 steps.",
        "So \\boxed{12} out of 100.",
        "The final answer is:\n12",
        "The answer is $12 of $100",
        "The answer is **12** of 100",
        "The answer is 12\nThe answer is obvious.\nThere were 100.",
    ],
)
def test_a_stated_answer_comes_before_the_last_number(text):
    assert number(text) == "12"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 3. No, wait: the answer is 4. Out of 9.", "4"),
        ("#### 3\n#### 4\n9", "4"),
        ("The answer is 3.\n#### 4\n9", "4"),
        ("#### 3\nThe answer is -4.\n9", "-4"),
    ],
)
def test_the_last_statement_wins(text, expected):
    assert number(text) == expected


def test_a_statement_ends_with_its_line():
    assert number("The answer is clear.\nIt takes 5 of 9") == "9"


@pytest.mark.parametrize("text", ["1" * 16, "1" * 30, "0.00001", "0." + "0" * 30 + "7", "-0.00002"])
def test_what_is_read_is_itself_a_plain_number(text):
    read = number(text)
    assert read is not None
    assert number(read) == read
    assert STRICT.match(read, text, "number")


@pytest.mark.parametrize("text", ["1" * 400, "9" * 5000, "1" * 400 + ".5", "1" * 400 + "/3", "1/" + "1" * 400])
def test_a_model_that_repeats_a_digit_for_ever_is_only_wrong(text):
    assert not STRICT.match(number(text), "5", "number")


# ---- options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", "true"),
        ("It is TRUE.", "true"),
        ("the correct answer is false", "false"),
        ("**False**", "false"),
        ("It is true, quite true.", "true"),
        ("That is untrue, a falsehood.", None),
        ("true_false", None),
        ("It may be true or false.", None),
        ("", None),
    ],
)
def test_options_are_whole_words_and_must_be_clear(text, expected):
    assert choice(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the correct answer is answer3", "answer3"),
        ("Answer3: wet palms", "answer3"),
        ("answer10", None),
        ("answer1 or answer2", None),
        ("Not answer1, so the answer is answer2, and not answer4.", "answer2"),
        ("The answer is answer1. No: the answer is answer2.", "answer2"),
        ("The answer is unclear.\nI take answer4.", "answer4"),
        ("The answer is unclear.\nI take answer4 or answer1.", None),
        ("answer: answer5, as answer1 is wrong", "answer5"),
    ],
)
def test_a_stated_option_comes_first_and_the_last_statement_wins(text, expected):
    assert choice(text, LETTERS) == expected


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("I like ice cream", ("ice", "ice cream"), "ice cream"),
        ("Written in C++.", ("C", "C++"), "C++"),
        ("It is (a).", ("(a)", "(b)"), "(a)"),
        ("it is PARIS", ("Paris", "Rome"), "Paris"),
        ("a.b", ("axb",), None),
    ],
)
def test_options_are_text_and_the_longest_is_taken(text, options, expected):
    assert choice(text, options) == expected


@pytest.mark.parametrize("text", ["", "well, ...", "The answer is ."])
def test_without_options_there_is_no_choice(text):
    assert choice(text, ()) is None


@pytest.mark.parametrize("text", ["fal\u017fe", "The answer is fal\u017fe."])
def test_letters_that_only_fold_to_an_option_do_no_harm(text):
    assert choice(text) in (None, "false")


# ---- texts


@pytest.mark.parametrize(
    ("text", "expected"), [("  in\n the  park ", "in the park"), ("Paris", "Paris"), (" \n", None), ("", None)]
)
def test_a_text_is_itself_with_white_space_trimmed(text, expected):
    assert STRICT.extract(text, "text", ()) == expected


# ---- properties

NUMBERLIKE = st.text("0123456789.,-+/$% \n#:={}\\boxedthanswri\u2212€", max_size=40)
ANY = st.one_of(st.text(max_size=40), NUMBERLIKE)


@PROPERTY
@given(text=ANY)
@example("0.00001")
@example("1" * 16)
@example("1" * 400)
@example("9" * 16 + "/7")
def test_reading_a_number_never_raises_and_is_idempotent(text):
    read = number(text)
    assert read is None or number(read) == read


@PROPERTY
@given(text=st.one_of(ANY, st.lists(st.sampled_from([*LETTERS, "answer is", "\n", "so"])).map(" ".join)))
def test_reading_an_option_never_raises_and_is_idempotent(text):
    read = choice(text, LETTERS)
    assert read is None or (read in LETTERS and choice(read, LETTERS) == read)


@PROPERTY
@given(text=ANY)
def test_reading_a_text_never_raises_and_is_idempotent(text):
    read = STRICT.extract(text, "text", ())
    assert read is None or STRICT.extract(read, "text", ()) == read


@PROPERTY
@given(before=PROSE, after=PROSE, value=st.integers(0, 10**9))
def test_prose_without_a_number_changes_nothing(before, after, value):
    # A dash right before the number would be its sign.
    before = before.rstrip("- ")
    assert number(f"{before} {value} {after}") == str(value)
    assert number(f"{before} {value:,} {after}") == str(value)
    assert number(f"{before} It is -{value + 1}. {after}") == str(-value - 1)


@PROPERTY
@given(before=PROSE, after=PROSE, option=st.sampled_from(["true", "false"]))
def test_prose_without_an_option_changes_nothing(before, after, option):
    assert choice(f"{before} {option} {after}") == option


# ---- judging


@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("12", "12", True),
        ("12", "12.0", True),
        ("12.0", "12", True),
        ("1234", "1,234", True),
        ("0.5", "1/2", True),
        ("1/2", "0.5", True),
        ("12", "$12", True),
        ("50", "50%", True),
        ("-12", "12", False),
        ("12", "13", False),
        ("12.0009", "12", True),
        ("12.002", "12", False),
        ("11.998", "12", False),
        ("0", "0.002", False),
        ("10000005", "10000000", True),
        ("10000020", "10000000", False),
        ("-10000005", "-10000000", True),
        ("12", "no number", False),
        (None, "12", False),
    ],
)
def test_a_number_is_right_within_the_tolerance(prediction, gold, right):
    assert STRICT.match(prediction, gold, "number") is right


@pytest.mark.parametrize("kind", ["choice", "text"])
@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("true", "true", True),
        ("True", "tRUE", True),
        (" true ", "true", True),
        ("true", " true\n", True),
        ("ice cream", "ice  cream", True),
        ("ice  cream", "ice  cream", True),
        ("false", "true", False),
        ("tru", "true", False),
        ("12.0", "12", False),
        (None, "true", False),
        (None, "None", False),
    ],
)
def test_other_answers_are_right_when_they_are_the_same_words(kind, prediction, gold, right):
    assert STRICT.match(prediction, gold, kind) is right


@pytest.mark.parametrize(
    ("text", "dataset", "expected"),
    [
        ("The answer is 12 of 100.", "gsm8k", "12"),
        ("the correct answer is answer3", "ARC-Challenge", "answer3"),
        ("the correct answer is false", "boolq", "false"),
        ("12", "boolq", None),
    ],
)
def test_extract_knows_the_answers_of_a_published_set(text, dataset, expected):
    assert extract(text, dataset) == expected


def test_misspelt_names_offer_the_nearest():
    with pytest.raises(UserError, match="dataset 'gms8k' does not exist: did you mean 'gsm8k'"):
        extract("12", "gms8k")
    with pytest.raises(UserError, match="protocol 'strickt' does not exist: did you mean 'strict'"):
        extract("12", "gsm8k", protocol="strickt")
