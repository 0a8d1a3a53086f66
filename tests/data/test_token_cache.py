"""Encoding many rows at once gives what encoding each gives; the cache gives the same again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters_pl.data import token_cache
from adapters_pl.data.token_cache import encoded, fingerprint
from adapters_pl.data.tokens import TokenRow, TokenTable, TrainingRows, encode_prompt, encode_rows, fit_to_cutoff
from tests.conftest import tiny_tokenizer
from tests.helpers.texts import TEXT

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
PAIRS = st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=12)
SPELT = st.lists(st.tuples(st.text("abc", min_size=1, max_size=6), st.text("abc", min_size=1, max_size=6)), min_size=1)


def one_by_one(tokenizer, pairs):
    """The prompt as generation gets it; the response as the tail of the whole text, or by itself."""
    rows = []
    for prompt, response in pairs:
        before, joined, alone = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + response, response)
        )
        tail = joined[len(before) :] if joined[: len(before)] == before else alone
        assert encode_rows(tokenizer, [prompt], [response])[1][0] == [*tail, 2]
        rows.append((encode_prompt(tokenizer, prompt), [*tail, 2]))
    return rows


def as_pairs(rows):
    return [(row["prompt"], row["response"]) for row in rows]


@pytest.mark.parametrize("which", ["tokenizer", "closing_tokenizer"])
@PROPERTY
@given(pairs=PAIRS)
def test_a_batch_is_encoded_as_its_rows_are(which, pairs, request):
    tokenizer = request.getfixturevalue(which)
    assert as_pairs(encoded(tokenizer, *zip(*pairs, strict=True))) == one_by_one(tokenizer, pairs)


@PROPERTY
@given(pairs=SPELT)
def test_a_batch_that_merges_across_borders_is_encoded_as_its_rows_are(pairs, spacing_tokenizer):
    assert as_pairs(encoded(spacing_tokenizer, *zip(*pairs, strict=True))) == one_by_one(spacing_tokenizer, pairs)


def test_a_template_that_writes_the_beginning_itself_has_it_once(tokenizer):
    assert encode_prompt(tokenizer, "<bos>12") == encode_prompt(tokenizer, "12")
    [row] = encoded(tokenizer, ["<bos>1<eos>2"], ["<eos>3"])
    assert (row["prompt"], row["response"]) == one_by_one(tokenizer, [("<bos>1<eos>2", "<eos>3")])[0]
    assert row["prompt"].count(1) == 1


# ---- the table


@PROPERTY
@given(pairs=PAIRS, cutoff=st.integers(3, 30), on_prompt=st.booleans())
def test_a_table_reads_as_a_list_of_fitted_rows_would(pairs, cutoff, on_prompt, tokenizer):
    rows = [TokenRow(9 - i, p, r) for i, (p, r) in enumerate(one_by_one(tokenizer, pairs))]
    table = TokenTable(encoded(tokenizer, *zip(*pairs, strict=True)), [row.row for row in rows], cutoff)
    fitted = [fit_to_cutoff(row, cutoff) for row in rows]
    assert list(table) == fitted
    assert table[:2] == fitted[:2]
    assert TrainingRows(table, on_prompt).label_counts() == TrainingRows(fitted, on_prompt).label_counts()
    keep = table.prompt_lengths() + table.response_lengths() <= cutoff
    assert list(table.select(keep)) == [row for row in rows if row.length <= cutoff]


def test_no_rows_are_an_empty_table(tokenizer):
    table = TokenTable(encoded(tokenizer, [], []), [], 8)
    assert (len(table), list(table), TrainingRows(table).label_counts()) == (0, [], [])


# ---- the cache


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """Every row is cached; counts how many texts were encoded."""
    monkeypatch.setattr(token_cache, "CACHE_FROM", 1)
    monkeypatch.setenv("ADAPTERS_PL_CACHE", str(tmp_path / "cache"))
    encoded_texts = []
    real = token_cache.encode_rows

    def counting(tokenizer, prompts, responses):
        encoded_texts.extend(prompts)
        return real(tokenizer, prompts, responses)

    monkeypatch.setattr(token_cache, "encode_rows", counting)
    return encoded_texts


ROWS = (["12", "3\n"], ["4", "56"])


def test_the_second_time_nothing_is_encoded(cached, tokenizer):
    first = as_pairs(encoded(tokenizer, *ROWS))
    assert as_pairs(encoded(tokenizer, *ROWS)) == first == one_by_one(tokenizer, list(zip(*ROWS, strict=True)))
    assert cached == ["12", "3\n"]


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"no arrow at all"]
)
def test_a_damaged_cache_is_made_again(cached, tokenizer, tmp_path, damage):
    first = as_pairs(encoded(tokenizer, *ROWS))
    [file] = (tmp_path / "cache" / "tokens").glob("*.arrow")
    file.write_bytes(damage(file.read_bytes()))
    assert as_pairs(encoded(tokenizer, *ROWS)) == first
    assert as_pairs(encoded(tokenizer, *ROWS)) == first
    assert len(cached) == 4


def test_a_cache_with_fewer_rows_is_made_again(cached, tokenizer, tmp_path):
    encoded(tokenizer, ["12"], ["4"])
    [short] = (tmp_path / "cache" / "tokens").glob("*.arrow")
    content = short.read_bytes()
    short.unlink()
    first = as_pairs(encoded(tokenizer, *ROWS))
    [file] = (tmp_path / "cache" / "tokens").glob("*.arrow")
    file.write_bytes(content)
    assert as_pairs(encoded(tokenizer, *ROWS)) == first


def test_an_unwritable_cache_only_costs_time(cached, tokenizer, tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(token_cache, "rank_zero_info", messages.append)
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(encoded(tokenizer, *ROWS)) == 2
    assert "not cached" in messages[0]
    assert "ADAPTERS_PL_CACHE" in messages[0]


def test_the_fingerprint_changes_with_everything_that_shapes_the_ids(tokenizer):
    prompts, responses = ROWS
    other = tiny_tokenizer()
    other.add_tokens(["12"])
    closing = tiny_tokenizer(eos_token="<pad>")
    made = [
        fingerprint(tokenizer, prompts, responses),
        fingerprint(tokenizer, prompts[::-1], responses),
        fingerprint(tokenizer, ["123", "\n"], responses),
        fingerprint(tokenizer, responses, prompts),
        fingerprint(other, prompts, responses),
        fingerprint(closing, prompts, responses),
    ]
    assert len(set(made)) == len(made)
    assert None not in made


def test_the_fingerprint_does_not_change_with_use(tokenizer):
    used = tiny_tokenizer()
    before = fingerprint(used, *ROWS)
    used(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert fingerprint(used, *ROWS) == before == fingerprint(tokenizer, *ROWS)
