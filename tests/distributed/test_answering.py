"""Processes that hold parts of one model answer each its own rows, and all of them as one process does."""

from __future__ import annotations

import json

import pytest

from tests.helpers.processes import launch

COUNT = 13
ENDS = list(range(2, 150))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows of different lengths, and rows with options."""
    folder = tmp_path_factory.mktemp("rows")
    sums = [{"instruction": "so " * (a % 5) + f"what is {a} plus 1?", "answer": str(a + 1)} for a in range(COUNT)]
    even = [
        {
            "instruction": f"Is {a} even? " * (1 + a % 3) + "Answer format: true/false",
            "answer": ["true", "false"][a % 2],
        }
        for a in range(COUNT)
    ]
    for name, rows in (("sums", sums), ("even", even)):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def jobs(files, make_base):
    """The arguments of every job, by name."""
    llama = str(make_base("llama", eos_token_id=ENDS))
    common = {"base": llama, "rows": str(files / "sums.json"), "eval_batch_size": 3, "max_new_tokens": 6}
    scored = {"rows": str(files / "even.json"), "protocol": "loglikelihood", "template": "plain"}
    return {
        "greedy": common,
        "prefix": {**common, "method": "prefix"},
        "all-known": {**common, "known": list(range(COUNT))},
        "most-known": {**common, "known": list(range(COUNT - 2))},
        "samples": {**common, "samples": 2, "seed": 1, "temperature": 0.8},
        "beams": {**common, "protocol": "llm_adapters"},
        "not-held": {**common, "base": str(make_base("phi3", eos_token_id=ENDS))},
        "scored": {**common, **scored},
        "scored-not-held": {**common, **scored, "base": str(make_base("phi3", eos_token_id=ENDS))},
    }


@pytest.fixture(scope="module")
def answered(tmp_path_factory, jobs):
    """What one process and two have answered: a folder each."""
    wanted = [{"name": name, **job} for name, job in jobs.items()]
    folders = {}
    for processes in (1, 2):
        folders[processes] = tmp_path_factory.mktemp(f"{processes}-processes")
        # What was known beforehand would be missing in what is compared.
        own = [{**job, "known": []} for job in wanted] if processes == 1 else wanted
        launch("distributed/answering.py", processes, folder=str(folders[processes]), jobs=own)
    return folders


JOBS = ["greedy", "prefix", "all-known", "most-known", "samples", "beams", "not-held", "scored", "scored-not-held"]


def parts(folder, name, processes):
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("name", JOBS)
def test_each_process_answers_its_own_rows_and_all_of_them_as_one_process(answered, jobs, name):
    assert list(jobs) == JOBS
    [one] = parts(answered[1], name, 1)
    two = parts(answered[2], name, 2)
    known = jobs[name].get("known", [])
    expected = {record["row"]: record for record in one["records"]}
    assert sorted(expected) == list(range(COUNT))
    rows = [[record["row"] for record in part["records"]] for part in two]
    assert sorted(rows[0] + rows[1]) == list(range(COUNT))
    assert abs(len(rows[0]) - len(rows[1])) <= 2
    # With the adapters and by the base alone, every sample.
    times = 2 * jobs[name].get("samples", 1)
    assert one["asked"] == times * COUNT
    assert two[0]["asked"] == times * len([row for row in rows[0] if row not in known])
    assert two[1]["asked"] == times * len(rows[1])
    for rank, part in enumerate(two):
        for record in part["records"]:
            if rank == 0 and record["row"] in known:
                assert record["output"] == "known"
                continue
            wanted = expected[record["row"]]
            scores = [each.pop("scores", {}) for each in (record, wanted)]
            assert record == wanted
            assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_the_jobs_are_what_they_are_meant_to_be(answered):
    """Rows end early and late, the adapter answers otherwise than the base, and a process has little to do."""
    for name in ("greedy", "samples", "beams", "not-held"):
        [one] = parts(answered[1], name, 1)
        assert any(record["output"] != record["base_prediction"] for record in one["records"])
        assert len({record["tokens"] for record in one["records"]}) > 1
        if name in ("greedy", "not-held"):
            assert {record["finish"] for record in one["records"]} == {"stop", "length"}
    first, second = parts(answered[2], "most-known", 2)
    assert 0 < first["asked"] < second["asked"] / 3
    first, second = parts(answered[2], "all-known", 2)
    assert first["asked"] == 0 < second["asked"]
