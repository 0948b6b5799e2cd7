"""The miniature's data: reproducible, right, and free of what is held out."""

import ast
import json
import random
from contextlib import suppress
from itertools import islice

import pytest

from experiments.miniature.corpus import draw_function, functions, library
from experiments.miniature.operations import OPERATIONS
from experiments.miniature.pairs import main, problems, records, training_pairs
from experiments.miniature.programs import SPLITS, draw_program, near_miss, normal_form
from xft.eval.extract import parse

SIZE = 60


@pytest.fixture(scope="module")
def train():
    return training_pairs(SIZE, 0.25, seed=1)


@pytest.fixture(scope="module", params=["screen", "confirm"])
def held_out(request):
    return problems(request.param, SIZE, seed=1)


def passes(code, tests):
    """Run trusted code of this repository."""
    space = {}
    exec(code, space)
    try:
        for test in tests:
            exec(test, space)
    except AssertionError:
        return False
    return True


def test_every_operation_is_total_and_of_its_kind():
    kinds = {"numbers": list, "words": list, "text": str, "scores": dict, "total": int}
    empty = {"numbers": [], "words": [], "text": "", "scores": {}}
    full = {"numbers": [3, -2, 10], "words": ["Sea", "", "ant"], "text": "Sea ant 12", "scores": {"a": 3, "b": 0}}
    for one in OPERATIONS.values():
        for k in one.values:
            for value in (empty[one.source], full[one.source]):
                answer = eval(one.code.format(x="x", k=k), {"x": value})
                assert isinstance(answer, kinds[one.target]), one.name
                if one.target in ("numbers", "words"):
                    wanted = int if one.target == "numbers" else str
                    assert all(isinstance(each, wanted) for each in answer), one.name


def test_every_operation_has_ways_to_ask_for_it_that_are_its_own():
    said = {}
    for one in OPERATIONS.values():
        assert len(set(one.phrases)) == len(one.phrases) >= 3
        assert ("{k}" in one.code) == (one.values != (None,)) == all("{k}" in phrase for phrase in one.phrases)
        for phrase in one.phrases:
            other = said.setdefault((one.source, phrase), one)
            assert other is one, phrase


def test_a_seed_gives_the_same_data_and_another_seed_others(train):
    assert training_pairs(SIZE, 0.25, seed=1) == train
    assert training_pairs(SIZE, 0.25, seed=2) != train
    assert list(islice(functions("1"), 5)) == list(islice(functions("1"), 5)) != list(islice(functions("2"), 5))


def test_a_smaller_set_is_the_beginning_of_a_larger_one_and_noise_spoils_more_and_more(train):
    clean, noisier = training_pairs(SIZE, 0.0, seed=1), training_pairs(SIZE, 0.5, seed=1)
    assert training_pairs(SIZE // 2, 0.0, seed=1) == clean[: SIZE // 2]
    wrong, more = ({n for n, pair in enumerate(pairs) if pair["wrong"]} for pairs in (train, noisier))
    assert len(wrong) == round(0.25 * SIZE)
    assert len(more) == round(0.5 * SIZE)
    assert wrong < more
    for number, pair in enumerate(train):
        assert (pair["response"] != clean[number]["response"]) == pair["wrong"]
        assert pair["instruction"] == clean[number]["instruction"]


def test_references_pass_their_tests_and_wrong_responses_fail_them(train):
    tests = {record["instruction"]: record["tests"] for record, *_ in islice(records("train", 1), 2 * SIZE)}
    for pair in train:
        assert passes(pair["response"], tests[pair["instruction"]]) != pair["wrong"]


def test_problems_have_tests_that_references_pass_and_each_step_matters(held_out):
    for problem in held_out:
        assert len(problem["tests"]) >= 5
        assert passes(problem["response"], problem["tests"])
        tree = ast.parse(problem["response"]).body[0]
        assert tree.name in problem["instruction"]
        for number in range(len(tree.body) - 1):  # without one statement the tests fail, or a name is missing
            body = tree.body[:number] + tree.body[number + 1 :]
            code = ast.unparse(ast.FunctionDef(tree.name, tree.args, body, [], lineno=1))
            with suppress(NameError, TypeError, AttributeError):
                assert not passes(code, problem["tests"]), problem


def test_held_out_programs_are_in_no_training_data(train, held_out):
    forms = {normal_form(problem["response"]) for problem in held_out}
    assert not forms & {normal_form(pair["response"]) for pair in train}
    rng = random.Random(0)
    assert not forms & {normal_form(draw_function(rng)) for _ in range(3000)}
    assert not {problem["instruction"] for problem in held_out} & {pair["instruction"] for pair in train}


def test_held_out_combinations_are_of_known_parts_and_in_one_split_whatever_their_order(held_out):
    assert {step for problem in held_out for step in problem["steps"]} <= OPERATIONS.keys()
    assert all(2 <= len(problem["steps"]) <= 4 for problem in held_out)
    rng = random.Random(0)
    operations = list(OPERATIONS.values())
    seen = {}
    for _ in range(2000):
        program = draw_program(rng, {2: 1, 3: 1}, operations)
        key = frozenset(step.operation.code for step in program.steps)
        assert seen.setdefault(key, program.split) == program.split
    assert set(seen.values()) == SPLITS.keys()


def test_a_near_miss_differs_in_one_step():
    rng = random.Random(0)
    for _ in range(300):
        program = draw_program(rng, {1: 1, 2: 1, 3: 1}, list(OPERATIONS.values()))
        other = near_miss(rng, program)
        assert other != program
        assert other.source == program.source
        assert len(program.steps) - len(other.steps) in (0, 1)
        if len(other.steps) == len(program.steps):
            assert sum(a != b for a, b in zip(program.steps, other.steps, strict=True)) == 1


def test_the_corpus_has_docstrings_and_no_operation_that_is_new_to_the_base():
    new = [one for one in OPERATIONS.values() if not one.known]
    assert len(OPERATIONS) / 3 < len(new) < len(OPERATIONS) / 2
    text = "\n\n".join(islice(functions("1"), 400))
    assert all(ast.get_docstring(function) for function in ast.parse(text).body)
    codes = [one.code.format(x=one.source, k=k) for one in new for k in one.values]
    assert not [code for code in codes if f"= {code}\n" in text or f"return {code}\n" in text]


def test_normal_forms_forget_names_and_docstrings_but_no_operation():
    one = 'def f(numbers):\n    """Squares."""\n    numbers = [n * n for n in numbers]\n    return sum(numbers)\n'
    other = "def g(items):\n    values = [k * k for k in items]\n    return sum(values)\n"
    same = "def g(items):\n    items = [k * k for k in items]\n    return sum(items)\n"
    assert normal_form(one) == normal_form(same)
    assert normal_form(one) != normal_form(same.replace("sum", "max"))
    assert normal_form(other) == normal_form(other.replace("values", "numbers"))


def test_the_command_writes_three_files(tmp_path):
    main([str(tmp_path), "--pairs", "8", "--noise", "0.5", "--problems", "4"])
    sizes = {path.name: len(path.read_text().splitlines()) for path in tmp_path.iterdir()}
    assert sizes == {"train.jsonl": 8, "problems-screen.jsonl": 4, "problems-confirm.jsonl": 4}
    pairs = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert sum(pair["wrong"] for pair in pairs) == 4


@pytest.mark.slow
def test_held_out_programs_are_not_in_the_library(held_out):
    forms = {normal_form(problem["response"]) for problem in held_out}
    texts = library()
    trees = [tree for text in texts if (tree := parse(text))]  # it has a manual or two
    assert len(trees) > 0.95 * len(texts)
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and len(node.body) <= 5:
                assert normal_form(ast.unparse(node)) not in forms
