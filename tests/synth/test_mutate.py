from __future__ import annotations

import ast

import pytest

from xft.synth.mutate import mutants

PROGRAM = '''
LIMIT = 3

def clip(values, low=0):
    """Keep what is above."""
    kept = []
    for value in values:
        if value > low and value != 7:
            kept.append(value * 2)
    return kept
'''


def test_each_mutant_differs_from_the_program_in_one_place() -> None:
    made = mutants(PROGRAM, 100, seed=0)
    assert len(made) == len(set(made)) >= 6
    original = ast.unparse(ast.parse(PROGRAM)).splitlines()
    for mutant in made:
        compile(mutant, "mutant", "exec")
        lines = mutant.splitlines()
        assert len(lines) == len(original)
        assert sum(new != old for new, old in zip(lines, original, strict=True)) == 1


@pytest.mark.parametrize(("before", "after"), [
    ("if value > low and value != 7:", "if value >= low and value != 7:"),
    ("if value > low and value != 7:", "if value > low or value != 7:"),
    ("if value > low and value != 7:", "if value > low and value != 8:"),
    ("if value > low and value != 7:", "if not (value > low and value != 7):"),
    ("return kept", "return None"),
    ("kept.append(value * 2)", "kept.append(value // 2)"),
])  # fmt: skip
def test_operators_constants_returns_and_branches_are_changed(before: str, after: str) -> None:
    original = ast.unparse(ast.parse(PROGRAM))
    assert original.replace(before, after) in mutants(PROGRAM, 100, seed=0)


def test_few_mutants_are_of_all_kinds() -> None:
    made = " ".join(mutants(PROGRAM, 4, seed=5))
    assert "return None" in made
    assert "not (value" in made


def test_the_same_seed_gives_the_same_mutants_and_another_seed_others() -> None:
    assert mutants(PROGRAM, 5, seed=1) == mutants(PROGRAM, 5, seed=1)
    assert mutants(PROGRAM, 5, seed=1) != mutants(PROGRAM, 5, seed=2)


def test_what_is_outside_of_functions_stays() -> None:
    assert all("LIMIT = 3" in mutant and "low=0" in mutant for mutant in mutants(PROGRAM, 100, seed=0))
    assert mutants("x = 1 + 2\n", 10, seed=0) == []


@pytest.mark.parametrize("program", ["not python (", "def f():\n    return " + "+".join(["1"] * 3000)])
def test_what_can_not_be_read_has_no_mutants(program: str) -> None:
    assert mutants(program, 5, seed=0) == []
