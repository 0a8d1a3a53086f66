"""What the protocols read out of a text, and what they take for right."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters_pl.answers import PROTOCOLS, extract, option_texts, protocol_named
from adapters_pl.answers.extractors import extract_choice, extract_letter
from adapters_pl.inputs.errors import UserError
from tests.conftest import DATA, GOLDEN, shared
from tests.helpers.review_answers import SETS as REVIEWED
from tests.helpers.review_answers import agrees, main, plainly_stated, readings

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


@pytest.mark.parametrize(
    "text",
    [
        "There are 12 apples. The answer is unknown.",
        "He paid $5. The answer is: not known",
        "3 + 4 = 7, but the total cannot be determined.",
        "With 12 apples there is not enough information to say.",
        "Of 30 students we know 4. It's impossible to tell",
        "The answer is 4 at first.\nThe answer is unclear, since some are missing.",
        "She has 3. The answer can't be determined from the facts given.",
    ],
)
def test_a_text_that_says_there_is_no_answer_gives_none(text):
    assert extract(text, "gsm8k") is None
    assert extract(f"{text}\nThe answer is 8.", "gsm8k") == "8"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is not given directly, so we compute it.\n5*3 = 15", "15"),
        ("The answer is unknown at first.\nLet x be it. x = 15", "15"),
        ("Although there is not enough information about Sunday, she sold 42.", "42"),
        ("The answer is 42, although there is not enough information about Sunday.", "42"),
    ],
)
def test_what_follows_a_doubt_counts(text, number):
    assert extract(text, "gsm8k") == number


@pytest.mark.parametrize(
    "text",
    [
        "E) Cannot be determined",
        "(E) Cannot be determined",
        "E\nIt cannot be determined from the data given",
        "The answer is E.",
    ],
)
def test_an_option_that_says_there_is_no_answer_is_one(text):
    assert extract_letter(text, "ABCDE", {"C": "12", "E": "cannot be determined"}) == "E"
    assert extract_choice("cannot be determined", ("yes", "no", "cannot be determined")) == "cannot be determined"


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
        ("2 1/2 hours", "2.5"),
        ("It is 2\u00bd.", "2.5"),
        ("\\boxed{\\frac{3}{4}}", "0.75"),
        ("1\u20442", "0.5"),
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
        ("The answer is not 3 but 4, of 9.", "4"),
        ("#### 3\n#### 4\n9", "4"),
        ("The answer is 3.\n#### 4\n9", "4"),
        ("#### 3\nThe answer is -4.\n9", "-4"),
    ],
)
def test_the_last_statement_wins(text, expected):
    assert number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is $118 000.", "118000"),
        ("The answer is 9 500", "9500"),
        ("He paid 9 500", "500"),
        ("So 12 is the answer. There were 100.", "12"),
        ("12 apples is the final answer, of 100", "12"),
        ("The answer to the question is 12 of 100", "12"),
        ("The answer would be 12, not 100", "12"),
    ],
)
def test_other_ways_of_stating_a_number(text, expected):
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
        ("The answer is not answer1 but answer2.", "answer2"),
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


# ---- letters

TEXTS = {"A": "20 miles", "B": "25 miles", "C": "$1,000", "D": "x", "E": "x"}


def letter(text, texts=None):
    return STRICT.extract(text, "letter", tuple("ABCDE"), option_texts=texts)


@pytest.mark.parametrize(
    "text",
    [
        "The answer is (C).",
        "the correct option is C",
        "The correct choice is: (c)",
        "Answer: C) 30",
        "The answer is **C**",
        "The answer is C because A and B are not.",
        "The answer is 20, that is (C).",
        "The answer is (A). No: the answer is (C).",
        "The answer is not A but C.",
        "option C is correct, and (A) is not",
        "(C) is the correct answer.",
        "\\boxed{C}",
        "\\boxed{\\text{C}}",
        "#### C",
        "C",
        "c.",
        "(C)",
        "So we choose.\nC\nA man was here.",
        "I think it is (C), since E is large",
        "C) 30",
    ],
)
def test_a_letter_given_as_an_answer(text):
    assert letter(text) == "C"


@pytest.mark.parametrize(
    "text",
    [
        "A man bought Eggs and Dates for Carol.",
        "Vitamin C is needed.",
        "The answer is a man.",
        "The answer is A man.",
        "The answer is B or C.",
        "The answer is not (A).",
        "(A) 5 (B) 6",
        "A) 5 B) 6",
        "The answer is 70.",
        "Because of E, D follows",
        "F",
        "",
    ],
)
def test_letters_in_words_names_and_lists_are_no_answers(text):
    assert letter(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 25 miles.", "B"),
        ("The answer is $1,000", "C"),
        ("20  MILES", "A"),
        ("The answer is 25 miles and more", None),
        ("The answer is x", None),  # two options say so
        ("The answer is 25 miles, (A)", "A"),
    ],
)
def test_the_exact_text_of_one_option_is_its_letter(text, expected):
    assert letter(text, TEXTS) == expected


@pytest.mark.parametrize(
    ("question", "options", "expected"),
    [
        ("How far? Answer Choices: (A) 2 m (B) 3 (C) m", "ABC", {"A": "2 m", "B": "3", "C": "m"}),
        ("Where is (A)? Answer Choices: (A) here (B) there", "AB", {"A": "here", "B": "there"}),
        ("How far?", "ABC", {}),
        (
            "Why?\n\nAnswer1: so it is Answer2: not so\n\nAnswer format: answer1/answer2",
            ("answer1", "answer2"),
            {"answer1": "so it is", "answer2": "not so"},
        ),
        ("Why?", (), {}),
    ],
)
def test_what_the_options_of_a_question_stand_for(question, options, expected):
    assert option_texts(question, tuple(options)) == expected


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
@given(text=st.one_of(ANY, st.text("ABCDEabcde ().:*\n#is answeroption{}\\boxed", max_size=40)))
def test_reading_a_letter_never_raises_and_is_idempotent(text):
    read = letter(text, TEXTS)
    assert read is None or (read in TEXTS and letter(read, TEXTS) == read)


@PROPERTY
@given(
    before=PROSE,
    after=PROSE,
    text=st.sampled_from(
        ["The answer is ({}).", "option {} is correct.", "the correct choice is {}.", "\n{}.\n", "({})"]
    ),
    option=st.sampled_from("ABCDE"),
)
def test_prose_without_a_letter_changes_nothing(before, after, text, option):
    assert letter(f"{before} {text.format(option)} {after}") == letter(text.format(option)) == option


@PROPERTY
@given(text=ANY, name=st.sampled_from(["llm_adapters", "strict"]), kind=st.sampled_from(["number", "choice", "letter"]))
def test_no_protocol_ever_raises_nor_in_judging(text, name, kind):
    protocol = PROTOCOLS[name]
    read = protocol.extract(text, kind, LETTERS if kind == "choice" else (), set_name="ARC-Easy")
    assert protocol.match(read, text, kind) in (True, False)


@PROPERTY
@given(text=ANY)
def test_reading_a_text_never_raises_and_is_idempotent(text):
    read = STRICT.extract(text, "text", ())
    assert read is None or STRICT.extract(read, "text", ()) == read


@PROPERTY
@given(before=PROSE, after=PROSE, value=st.integers(0, 10**9))
def test_prose_without_a_number_changes_nothing(before, after, value):
    # A dash right before the number or its currency would be its sign.
    before = before.rstrip("- €")
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


# ---- the reference's reading


@shared(GOLDEN)
def test_the_references_extractors_agree_on_every_row():
    rows = [json.loads(line) for line in (GOLDEN / "extract_open.jsonl").read_text().splitlines()]
    assert len(rows) == 2830
    kinds = {"AQuA": "letter"} | dict.fromkeys(("MultiArith", "AddSub", "SingleEq", "gsm8k", "SVAMP"), "number")
    for row in rows:
        kind = kinds.get(row["dataset"], "choice")
        read = PROTOCOLS["llm_adapters"].extract(row["output_text"], kind, (), set_name=row["dataset"])
        if kind == "number":  # the reference returns infinity where there is no number
            assert float("inf" if read is None else read) == float(row["prediction"]), row
        else:
            assert (read or "") == row["prediction"], row


@pytest.mark.parametrize(
    ("text", "dataset", "expected"),
    [
        ("5-3", "gsm8k", "-3"),
        ("The answer is 1,234. Of 5.", "gsm8k", "5"),
        ("True. false", "boolq", "false"),
        ("answer10", "ARC-Easy", "answer1"),
        ("answer2\n### Response: answer1", "ARC-Easy", "answer2"),
        ("### Response: answer1", "ARC-Easy", None),
    ],
)
def test_the_references_flaws_are_kept(text, dataset, expected):
    assert extract(text, dataset, "llm_adapters") == expected


@pytest.mark.parametrize(
    ("prediction", "gold", "kind", "right"),
    [
        ("12.0009", "12", "number", True),
        ("12.002", "12", "number", False),
        ("10000005", "10000000", "number", False),
        ("9" * 400, "9" * 400, "number", False),
        ("12", "a dozen", "number", False),
        ("true", "true", "choice", True),
        ("true", "True", "choice", False),
        (None, "A", "letter", False),
    ],
)
def test_the_references_judgement(prediction, gold, kind, right):
    assert PROTOCOLS["llm_adapters"].match(prediction, gold, kind) is right


# ---- the published rationales


@shared(DATA)
def test_strict_returns_what_a_rationale_plainly_states(tmp_path, capsys):
    found = list(readings(DATA))
    plain = [reading for reading in found if reading.stated is not None]
    assert {name: sum(r.set == name for r in plain) for name in REVIEWED} == {"AQuA": 252, "gsm8k": 1279, "SVAMP": 988}
    assert [reading for reading in plain if not agrees(reading)] == []
    # The rest is for a person's eye: several numbers, no statement at all.
    assert main(["--root", str(DATA), "--out", str(tmp_path / "others.jsonl")]) == 0
    others = [json.loads(line) for line in (tmp_path / "others.jsonl").read_text().splitlines()]
    assert len(others) == len(found) - len(plain) == 48
    assert {"stated", "strict", "llm_adapters", "gold", "text"} <= others[0].keys()
    # The rationales are what a model wrote, and no gold.
    assert "of all, 123 are right (48.4%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("The answer is (D).", "letter", "D"),
        ("The answer is -$7.", "number", "-7"),
        ("The answer is 2 or 3.", "number", None),
        ("The answer is 3 onions and 1 potato.", "number", None),
        ("The answer is 3 onions and a potato.", "number", None),
        ("The answer is 5 + x hours.", "number", None),
        ("The answer is 12 hours. Of 100.", "number", None),
    ],
)
def test_what_counts_as_a_plain_statement(text, kind, expected):
    assert plainly_stated(text, kind) == expected
