import json
from pathlib import Path

import pytest

from xft.errors import DataError
from xft.eval.compare import compare, read_losses
from xft.eval.metrics import mcnemar_p, smallest_difference


def write(folder: Path, passed: list[list[bool]], **scores: object) -> Path:
    folder.mkdir(parents=True)
    counts = {"samples_per_problem": len(passed[0])}
    (folder / "scores.json").write_text(json.dumps({"benchmark": "toy", "data_hash": "h"} | counts | scores))
    lines = [
        {"task_id": f"toy/{i}", "sample": s, "status": "passed" if good else "failed", "fingerprint": "f"}
        for i, each in enumerate(passed)
        for s, good in enumerate(each)
    ]
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_clear_winner_is_better_and_the_other_worse(tmp_path):
    a = write(tmp_path / "a", [[i < 80] for i in range(100)])
    b = write(tmp_path / "b", [[i < 40] for i in range(100)])
    there, back = compare(a, b), compare(b, a)
    assert (*there.ahead, there.items) == (40, 0, 100)
    assert (there.difference.verdict, back.difference.verdict) == ("better", "worse")
    assert there.means == (0.8, 0.4)
    assert f"verdict: {a} is better than {b}" in there.text()
    assert there.p == pytest.approx(2 * 0.5**40)


def test_few_differences_cannot_tell(tmp_path):
    a = write(tmp_path / "a", [[i < 45] for i in range(100)])
    b = write(tmp_path / "b", [[i < 40] for i in range(100)])
    found = compare(a, b)
    assert found.difference.verdict == "can't tell"
    assert found.p == pytest.approx(2 * 0.5**5)
    assert "verdict: can't tell" in found.text()
    assert found.smallest >= 0.06


def test_several_samples_compare_by_problem_without_mcnemar(tmp_path):
    a = write(tmp_path / "a", [[True, i % 2 == 0] for i in range(60)])
    b = write(tmp_path / "b", [[False, i % 2 == 0] for i in range(60)])
    found = compare(a, b)
    assert (found.p, found.means) == (None, (0.75, 0.25))
    assert found.difference.verdict == "better"
    assert found.difference.mean == pytest.approx(0.5)


def test_faults_of_the_sandbox_count_for_neither(tmp_path):
    a = write(tmp_path / "a", [[True]] * 20)
    b = write(tmp_path / "b", [[True]] * 20)
    path = b / "verdicts.jsonl"
    path.write_text(path.read_text().replace("passed", "infrastructure", 3))
    found = compare(a, b)
    assert (found.items, found.only_one, *found.ahead) == (17, 3, 0, 0)
    assert "3 problems that only one of them has" in found.text()


def test_unlike_conditions_are_said(tmp_path):
    a = write(tmp_path / "a", [[True]] * 9, prompt="chat", dtype="bfloat16")
    b = write(tmp_path / "b", [[True]] * 9, prompt="magicoder", dtype="bfloat16")
    assert compare(a, b).unlike == ("prompt: chat and magicoder",)


@pytest.mark.parametrize(
    ("scores", "message"),
    [({"benchmark": "other"}, "different benchmarks"), ({"data_hash": "i"}, "different versions of the data")],
)
def test_what_cannot_be_compared_is_refused(tmp_path, scores, message):
    a = write(tmp_path / "a", [[True]])
    with pytest.raises(DataError, match=message):
        compare(a, write(tmp_path / "b", [[True]], **scores))
    with pytest.raises(DataError, match=r"no scores\.json"):
        compare(a, tmp_path / "none")


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(3, 3) == 1.0
    assert mcnemar_p(6, 0) == pytest.approx(2 / 64)
    assert mcnemar_p(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar_p(2, 8) == mcnemar_p(8, 2)


def test_the_smallest_difference_is_found_about_4_times_in_5():
    """Simulated: at that true difference, the paired test is significant in about 80% of repetitions."""
    import numpy as np

    n, share = 400, 0.2  # a fifth of the problems differ
    generator = np.random.default_rng(0)
    base = np.zeros(n)
    base[: int(n * share)] = [1, -1] * int(n * share / 2)
    delta = smallest_difference([float(max(x, 0)) for x in base], [float(max(-x, 0)) for x in base])
    up = (share + delta) / 2
    found = 0
    for _ in range(1000):
        draws = generator.choice([1, -1, 0], size=n, p=[up, share - up, 1 - share])
        found += mcnemar_p(int((draws == 1).sum()), int((draws == -1).sum())) < 0.05
    assert 0.7 < found / 1000 < 0.87
    assert smallest_difference([1.0] * 50, [1.0] * 50) == 6 / 50


def losses(folder: Path, values: list[float], **scores: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps({"benchmark": "heldout", "data_hash": "h"} | scores))
    lines = [{"pair": str(number), "tokens": 9, "loss": value} for number, value in enumerate(values)]
    (folder / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_of_held_out_losses_the_lower_is_better(tmp_path):
    a = losses(tmp_path / "a", [1.0 + 0.01 * (i % 7) for i in range(50)])
    b = losses(tmp_path / "b", [1.1 + 0.01 * (i % 5) for i in range(50)])
    found = compare(a, b)
    assert (found.difference.verdict, found.p, found.ahead) == ("better", None, (50, 0))
    assert "50 held-out responses: A" in found.text()
    assert "nats a token" in found.text()
    assert found.smallest < 0.02
    assert compare(b, a).difference.verdict == "worse"
    with pytest.raises(DataError, match="different versions of the data"):
        compare(a, losses(tmp_path / "c", [1.0], data_hash="other"))
    with pytest.raises(DataError, match="different benchmarks"):
        compare(a, write(tmp_path / "d", [[True]]))


def test_losses_are_paired_by_their_pairs_wherever_they_stand(tmp_path):
    lines = [{"pair": pair, "loss": loss} for pair, loss in (("p", 1.0), ("q", 2.0), ("p", 3.0), ("r", 4.0))]
    a, b = losses(tmp_path / "a", []), losses(tmp_path / "b", [])
    for folder, kept in ((a, lines), (b, lines[1:])):  # another prompt leaves less room
        (folder / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert read_losses(a) == {"p 0": 1.0, "q 0": 2.0, "p 1": 3.0, "r 0": 4.0}
    found = compare(a, b)
    assert (found.items, found.only_one) == (3, 1)


def test_a_damaged_loss_is_named(tmp_path):
    a = losses(tmp_path / "a", [1.0])
    (a / "losses.jsonl").write_text('{"pair": "0"}\n')
    with pytest.raises(DataError, match=r"losses\.jsonl: damaged .*score the model again"):
        compare(a, a)


def test_too_few_problems_are_said_to_show_nothing(tmp_path):
    a = write(tmp_path / "a", [[True]] * 4)
    assert "so few problems can show no difference at all" in compare(a, write(tmp_path / "b", [[False]] * 4)).text()
