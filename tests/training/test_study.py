"""A study goes on where it was stopped."""

import json

from benchmarks.study import run_all


def test_what_is_done_is_not_run_again_and_a_line_that_was_not_finished_is(tmp_path):
    path, ran = tmp_path / "new/lines.jsonl", []

    def run(variant, seed):
        ran.append((variant, seed))
        return {"score": 0.5}

    run_all(path, "ab", 2, 10, (), run)
    assert ran == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    path.write_text(path.read_text()[:-9])
    ran.clear()
    lines = run_all(path, "ab", 2, 10, (), run)
    assert ran == [("b", 1)] and len(lines) == 4
    assert [json.loads(line) for line in path.open()] == lines
    assert len(run_all(path, "ab", 1, 20, ("b",), run)) == 1 and ran[1:] == [("b", 0)]
