"""The report: what it says of each kind of study, that nothing in it can break out, and that it opens as it should."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import MMSEARCH, TINY, Run, environment, require
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from optuna.trial import TrialState, create_trial
from reports import ablation_of, config_of, confirmation_of, figure, material_of, metrics, score, searched_of, trial
from test_dashboard import BROWSER_ARGUMENTS

from mmsearch.config import load_config
from mmsearch.data.sources import load_dataset
from mmsearch.errors import DataError, MmsearchError, NoCompletedTrial, StudyMismatch
from mmsearch.paths import ReportPaths
from mmsearch.results.figures.style import Figure
from mmsearch.results.figures.trials import Searched
from mmsearch.results.report import gather, write
from mmsearch.results.report.build import build
from mmsearch.results.report.content import Cell, Code, Column, Picture, Report, Section, note, paragraph, table
from mmsearch.results.report.html import render_figure, render_html
from mmsearch.results.report.markdown import render_markdown
from mmsearch.results.report.material import without_roots
from mmsearch.results.report.references import REFERENCES
from mmsearch.search.study import create_study, open_study
from mmsearch.search.values import VIOLATED


def words(report: Report) -> str:
    """All that a report says, on one line."""
    return " ".join(re.sub(r"[`*]", "", render_markdown(report, "figures")).split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def simple(folder: Path, **overrides: Any) -> Any:
    config = config_of(folder, **overrides)
    return searched_of(config, [trial(config, 0, [0.95]), trial(config, 1, [0.97]), trial(config, 2, [0.9])])


def test_the_summary_has_the_numbers_and_their_intervals(folder: Path) -> None:
    searched = simple(folder)
    said = words(build(material_of(searched, metrics(searched))))
    assert "Of 3 trials, trial 1 is the best, with a validation macro F1 of 0.9700, 0.0200 higher" in said
    assert "a macro F1 of 0.9651 (95 % interval 0.9512 to 0.9777) and an accuracy of 0.9700 (0.9600 to 0.9800)" in said
    assert "gain +0.0651 macro F1 (+0.0502 to +0.0801) over the better one alone" in said
    assert "best of 3 trials by the same validation rows" in said
    assert "No trial was trained on more than one seed" in said


def test_the_methods_are_the_study_s(folder: Path) -> None:
    said = words(build(material_of(simple(folder))))
    assert "400 training rows, a sample with the balance of classes of all and 1,000 test rows" in said
    assert "| optimizer.lr | 0.001 to 0.01 | logarithmic | 0.003 | - |" in said
    assert "| image.mlp.units_1 | 16, 32 | choice | 32 | image.encoder = mlp |" in said
    assert "fixed at another value" in said.lower()
    assert "batch_size = 32" in said
    assert "after 3 random trials" in said
    assert "Each trained on A processor (cpu, 1 thread)" in said
    assert "4 min of training, the sum of their durations, within 4 min" in said  # 3 x 90 s, which overlap by 30 s each
    assert "2 workers on 1 machine took part" in said
    assert "PyTorch 2.13.0" in said


@pytest.mark.parametrize(
    ("overrides", "present", "absent"),
    [
        ({"search__sampler": "random"}, ["drawn at random (Bergstra and Bengio, 2012)"], ["Parzen"]),
        ({"search__sampler": "qmc"}, ["scrambled Sobol sequence (Owen, 1998)"], ["Parzen"]),
        ({"search__sampler": "gp"}, ["Gaussian process with a Matern kernel (Snoek et al., 2012)"], []),
        ({"search__sampler": "nsga2"}, ["NSGA-II (Deb et al., 2002) in generations of 20"], ["Parzen"]),
        ({"search__pruner": "none"}, ["No trial was pruned."], ["Golovin"]),
        ({"search__pruner": "percentile"}, ["not among the best 25 %"], []),
        ({"search__pruner": "hyperband"}, ["Hyperband (Li et al., 2018)"], ["Golovin"]),
        ({"search__pruner": "halving"}, ["successive halving (Li et al., 2020)", "one of 2"], ["Golovin"]),
        ({"search__pruner": "patient"}, ["without a better value for 2 epochs"], []),
        ({"search__pruner": "threshold", "search__pruner_lower": 0.5}, ["a value below 0.5 was pruned"], ["Golovin"]),
        (
            {"search__pruner": "wilcoxon", "data__validation": "kfold"},
            ["signed-rank test (Wilcoxon, 1945)", "5-fold", "as the mean over the folds", "in each fold", "5 folds"],
            [],
        ),
        ({"data__validation": "three_way"}, ["as much again (", "is kept back from the search"], []),
    ],
)
def test_the_wording_follows_the_facts(
    folder: Path, overrides: dict[str, Any], present: list[str], absent: list[str]
) -> None:
    said = words(build(material_of(simple(folder, **overrides))))
    for text in present:
        assert text in said
    for text in absent:
        assert text not in said


def test_where_smaller_is_better(folder: Path) -> None:
    config = config_of(folder, study__metrics=("loss",))
    searched = searched_of(config, [trial(config, 0, [0.31]), trial(config, 1, [0.25])])
    said = words(build(material_of(searched)))
    assert "cross-entropy loss of 0.2500, 0.0600 lower than the defaults' 0.3100" in said
    assert "smaller is better" in said


@pytest.mark.parametrize(
    ("name", "values", "present"),
    [
        ("macro_f1", (0.99, 0.95), "0.0400 lower than the defaults' 0.9900"),
        ("loss", (0.2, 0.3), "0.1000 higher than the defaults' 0.2000"),
        ("macro_f1", (0.95, 0.95), "the same as the defaults' 0.9500"),
    ],
)
def test_defaults_that_are_better_may_violate_a_constraint(
    folder: Path, name: str, values: tuple[float, float], present: str
) -> None:
    config = config_of(folder, study__metrics=(name,), study__constraints=("parameters <= 5000",))
    why: dict[str, Any] = {
        "user_attrs": {VIOLATED: "parameters 9000 > 5000"},
        "constraints": {"parameters <= 5000": 0.8},
    }
    searched = searched_of(config, [trial(config, 0, [values[0]], **why), trial(config, 1, [values[1]])])
    report = build(material_of(searched))
    assert searched.best.number == 1
    said = words(report)
    assert f", {present}, which violate a constraint." in said
    assert f"That is {present} (trial 0). The defaults violate a constraint" in said
    assert "-0." not in said


def test_several_metrics_have_a_front_and_constraints_are_named(folder: Path) -> None:
    config = config_of(folder, study__metrics=("macro_f1", "parameters"), study__constraints=("parameters <= 5000",))
    trials = [
        trial(config, number, values) for number, values in enumerate([[0.9, 100.0], [0.95, 4000.0], [0.8, 200.0]])
    ]
    trials.append(trial(config, 3, [0.99, 9000.0], constraints={"parameters <= 5000": 0.8}))
    said = words(build(material_of(searched_of(config, trials))))
    assert "2 trials are beaten by no other in all of them (the Pareto front): 1, 0." in said
    assert "With several metrics no trial is pruned" in said
    assert "Only trials that keep to parameters <= 5000 can be the best" in said.replace("\\", "")
    table_of_top = re.findall(r"\| (\d) \| 0\.\d{4} \| \d+ \|.*?\| (yes|no) \|", said)
    assert table_of_top == [("1", "yes"), ("0", "yes"), ("2", "yes"), ("3", "no")]  # what violates stands last


def test_a_grid_says_how_many_points_it_has(folder: Path) -> None:
    text = (
        TINY.replace('"optimizer.lr" = { low = 1e-3, high = 1e-2, log = true, default = 3e-3 }', "")
        .replace('"image.encoder" = ["mlp", "cnn"]', "")
        .replace('"image.mlp.depth" = 1\n"image.mlp.units_1" = [16, 32]', "")
    )
    text += '"head.dropout" = [0.1, 0.2, 0.3]\n'
    config = config_of(folder, text, search__sampler="grid")
    said = words(build(material_of(searched_of(config, [trial(config, 0, [0.9]), trial(config, 1, [0.91])], total=3))))
    assert "the points of a grid over the space" in said
    assert "of a grid of 3 points" in said


def test_a_search_that_goes_on_says_so(folder: Path) -> None:
    config = config_of(folder)
    trials = [trial(config, 0, [0.9]), trial(config, 1, None, TrialState.RUNNING)]
    said = words(build(material_of(searched_of(config, trials, total=6))))
    assert "Of 1 trial of 6, trial 0 is the best" in said
    assert "The search is not finished: 1 of 6 trials are there; 1 trial ran when this was written." in said
    assert "It has the defaults: nothing that was tried is better." in said


def test_several_machines_are_told_apart(folder: Path) -> None:
    config = config_of(folder)
    trials = [trial(config, 0, [0.9]), trial(config, 1, [0.91], hardware="A GPU", host="two")]
    said = words(build(material_of(searched_of(config, trials))))
    assert "2 workers on 2 machines took part" in said
    assert "| A GPU | cpu | 1 | 1 |" in said


def test_without_labels_the_report_says_what_was_scored(folder: Path) -> None:
    searched = simple(folder)
    for name, sentence in (
        ("held_back", "on 1,000 rows that were kept back from training"),
        ("training", "These rows were trained on: the scores say nothing of new rows."),
    ):
        said = words(build(material_of(searched, metrics(searched, name))))
        assert sentence in said
        assert "test rows its macro F1" not in said


def test_what_is_confirmed_stands_in_its_table(folder: Path) -> None:
    searched = simple(folder)
    plain = words(build(material_of(searched)))
    assert "mmsearch confirm" in plain
    assert "Confirmed means" not in plain
    held = confirmation_of(searched)
    said = words(build(material_of(searched, confirmation=held)))
    assert (
        "The choice is trial 1, the best mean: macro F1 0.9612 (0.9512 to 0.9712), 0.0088 worse than the 0.9700" in said
    )
    assert "| 0 (defaults) | 0.9412 | 0.9312 to 0.9512 | 0.9700 | +0.0288 | \\< 0.001 | yes | 1,000 |" in said
    assert "| 1 | 0.9612 | 0.9512 to 0.9712 | 0.9700 | +0.0088 | - | - | 1,001 |" in said
    assert "corrected for the number of tests (Holm, 1979); differs: p below 0.05." in said
    assert "Trial 1 has the best mean, and differs from all others." in said
    best, other = held.rows
    for tied, name in (
        (replace(other, differs=False, p=0.3), "trial 0 (defaults)"),
        (replace(other, differs=False, p=None, eligible=False), "trial 0 (defaults, cannot be the choice)"),
    ):
        alike = words(build(material_of(searched, confirmation=replace(held, rows=(best, tied)))))
        assert f"Trial 1 has the best mean; {name} cannot be told apart from it." in alike
        assert "differs from all others" not in alike
    later = words(build(material_of(searched, confirmation=replace(held, now=held.finished + 2))))
    assert "The search has finished 2 trials since" in later


def test_the_ablation_stands_in_its_table(folder: Path) -> None:
    searched = simple(folder)
    assert "report" in words(build(material_of(searched)))
    assert "--ablate" in words(build(material_of(searched)))
    said = words(build(material_of(searched, ablation=ablation_of(searched))))
    assert "Worse beyond chance without the searched value: optimizer.lr." in said
    assert "| optimizer.lr | 0.01 | 0.003 | 0.9000 | +0.0612 | 0.0500 to 0.0700 | 0.002 |" in said
    assert "| image.mlp.units_1 | 16 | 32 | 0.9600 | +0.0012 | - | - |" in said
    assert "The winner is now" not in said
    assert "beyond chance with the default" not in said
    first, second = ablation_of(searched).rows
    worse = replace(second, difference=-0.02, p=0.01, differs=True)
    said = words(build(material_of(searched, ablation=replace(ablation_of(searched), rows=(first, worse)))))
    assert "searched value: optimizer.lr. Better beyond chance with the default: image.mlp.units_1." in said
    said = words(build(material_of(searched, ablation=replace(ablation_of(searched), rows=(worse,)))))
    assert "seeds and validation rows" in said
    assert "No single one of its values" not in said
    said = words(build(material_of(searched, ablation=replace(ablation_of(searched), rows=(second,)))))
    assert "No single one of its values is shown to make a difference beyond chance." in said
    earlier = replace(ablation_of(searched), trial=0)
    assert "The winner is now trial 1; mmsearch report" in words(build(material_of(searched, ablation=earlier)))


def test_the_model_s_part_has_all_that_was_measured(folder: Path) -> None:
    searched = simple(folder)
    held = metrics(searched)
    held["calibration"] |= {"abstain_below": 0.8, "asked": "coverage=0.95", "coverage": 0.951, "accuracy_kept": 0.99}
    held["members"] = [{**held["members"][0], "trial": number} for number in (1, 2)]
    said = words(build(material_of(searched, held)))
    assert "an ensemble of 2, of trials 1 and 2, whose probabilities are averaged" in said
    assert "divided by the temperature 1.250, fitted on 80 validation rows, by a model trained without them" in said
    assert "below 0.8000, asked for as coverage=0.95" in said
    assert "answers 95.1 % of them, with an accuracy of 0.9900" in said
    assert "| 0 | 100 % | 0.9700 |" in said
    assert "| audio shuffled among the rows | 0.5000 | 0.4800 to 0.5200 |" in said
    assert "| zero | 0.9000 | 0.8000 | 0.8500 | 500 |" in said
    assert "600 different recordings" in said  # of the demo's 1,000 test rows
    without = metrics(searched, calibration=None, abstention=[])
    assert "without calibration" in words(build(material_of(searched, without)))


@pytest.mark.parametrize(
    ("by", "confirmed", "trials", "folds", "present"),
    [
        ("best", False, [1], 1, "The best configuration of the search is trained again on"),
        ("best", False, [1], 1, "for as many epochs as were best in the search. "),
        ("best", False, [1], 5, "for as many epochs as were best in the search (the median of the folds). "),
        ("confirmed", True, [1], 1, "The configuration that was chosen on the fresh seeds is trained again on"),
        ("confirmed", True, [1], 1, "searched schedule, for the median of its best epochs over the fresh seeds. "),
        ("knee", True, [1], 1, "The configuration of trial 1, picked by knee, is trained again"),
        ("knee", True, [1], 1, "for the median of its best epochs over the fresh seeds. "),
        ("trial", False, [1, 1], 1, "trial 1, which was asked for, is, from 2 seeds, trained again"),
        ("confirmed", True, [1, 2], 1, "An ensemble of the configurations of trials 1 and 2 is trained again"),
        ("confirmed", True, [1, 2], 1, "each for the median of its best epochs over the fresh seeds where it was"),
        ("best", False, [1, 2], 1, "schedule, each for as many epochs as were best in the search. "),
    ],
)
def test_the_methods_say_what_was_trained_again(
    folder: Path, by: str, confirmed: bool, trials: list[int], folds: int, present: str
) -> None:
    searched = simple(folder, **({"data__validation": "kfold"} if folds > 1 else {}))
    held = metrics(searched, chosen={"by": by, "sentence": "trial 1"}, confirmed={"mean": 0.96} if confirmed else None)
    held["members"] = [{**held["members"][0], "trial": number} for number in trials]
    assert present in words(build(material_of(searched, held)))


def test_before_a_model_is_made_the_methods_follow_what_is_confirmed(folder: Path) -> None:
    searched = simple(folder)
    assert "for as many epochs as were best in the search" in words(build(material_of(searched)))
    said = words(build(material_of(searched, confirmation=confirmation_of(searched))))
    assert "for the median of its best epochs over the fresh seeds" in said


@pytest.mark.parametrize(
    ("mistakes", "sentence"),
    [
        (
            0,
            "With no mistake on these 1,000 rows, the bootstrap interval of the macro F1 is too narrow: by the rule of "
            "three up to 0.3 % of new rows may be wrong.",
        ),
        (1, "With 1 mistake on these 1,000 rows, the bootstrap interval of the macro F1 is too narrow."),
        (4, "With 4 mistakes on these 1,000 rows, the bootstrap interval of the macro F1 is too narrow."),
    ],
)
def test_intervals_of_few_mistakes_are_doubted(folder: Path, mistakes: int, sentence: str) -> None:
    searched = simple(folder)
    said = words(build(material_of(searched, metrics(searched, test=score(mistakes=mistakes)))))
    assert said.count(sentence) == 2  # in the summary and beside the scores
    assert "that of the accuracy is Wilson's, of 95 % too (Wilson, 1927)" in said
    trained_on = metrics(searched, "training", training=score(mistakes=mistakes))
    assert "of new rows may be wrong" not in words(build(material_of(searched, trained_on)))


def test_intervals_of_many_mistakes_are_not_and_older_models_did_not_count_theirs(folder: Path) -> None:
    searched = simple(folder)
    assert "bootstrap interval of the macro F1" not in words(
        build(material_of(searched, metrics(searched, test=score(mistakes=5))))
    )
    older = score()
    del older["mistakes"]
    said = words(build(material_of(searched, metrics(searched, test=older))))
    assert "Wilson's" not in said


def test_what_a_threshold_brings_is_told_of_both_kinds_of_rows(folder: Path) -> None:
    searched = simple(folder)

    def said(scores: dict[str, Any], **changes: Any) -> str:
        held = metrics(searched, test=score(**scores))
        held["calibration"] |= changes
        return words(build(material_of(searched, held)))

    asked = {"asked": "accuracy=0.999", "coverage": 0.9, "accuracy_kept": 1.0}
    found = said({"kept": {"coverage": 0.8125, "accuracy": 0.9954}}, abstain_below=0.8, **asked)
    assert "chosen on it then answers 90 % of them, with an accuracy of 1.0000; on the 1,000 test rows it " in found
    assert "test rows it answers 81.25 % of them, with an accuracy of 0.9954." in found
    found = said({"kept": {"coverage": 0.0, "accuracy": None}}, abstain_below=1.0, **asked)
    assert "on the 1,000 test rows it answers none of them." in found
    found = said({}, abstain_below=None, remarks=["at most 0.9900: the model never abstains"], **asked)
    assert "No threshold brings what was asked for, accuracy=0.999: the model never abstains." in found
    assert "Beware: at most 0.9900: the model never abstains." in found
    found = said({"kept": {"coverage": 1.0, "accuracy": 0.97}}, abstain_below=0.0, **asked)
    assert "The threshold of abstaining is 0, asked for as accuracy=0.999: the model never abstains." in found
    assert "greatest probability is below 0.0000" not in found


def test_paths_in_messages_do_not_tell_of_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(folder, data__source="/mnt/my disk/spoken digits")
    (folder / "elsewhere").mkdir()
    for place in (folder, folder / "elsewhere"):
        monkeypatch.chdir(place)
        for message, shown in (
            (f"{folder}/storage/digits/model: gone", "storage/digits/model: gone"),
            ("/mnt/my disk/spoken digits/a b.npy: no array", "spoken digits/a b.npy: no array"),
            ("[Errno 28] '/home/me/file.txt' (/etc/x)", "[Errno 28] 'file.txt' (x)"),
            ("see https://a.org/b/c, and/or 1/2 of ./d/e / f", "see https://a.org/b/c, and/or 1/2 of ./d/e / f"),
        ):
            assert without_roots(config, message) == shown
    held = replace(confirmation_of(simple(folder)), missing=1, failures=("trial 0: no /home/me/file",))
    assert "is missing: trial 0: no file." in words(build(material_of(simple(folder), confirmation=held)))


def test_of_many_classes_the_worst_are_listed(folder: Path) -> None:
    searched = simple(folder)
    held = metrics(searched, test=score(classes=[f"class {at}" for at in range(200)]))
    said = words(build(material_of(searched, held)))
    assert "The 50 of 200 classes with the lowest F1" in said
    assert said.count("| class 4") == 11  # class 4 and class 40 to 49


def test_a_model_of_something_else_is_left_out(folder: Path) -> None:
    searched = simple(folder)
    held = metrics(searched)
    assert gather.foreign(held, searched, "abc") is None
    assert "other data" in str(gather.foreign(held, searched, "def"))
    assert "trial 9 that the study does not have" in str(gather.foreign({**held, "trial": 9}, searched, "abc"))
    other = {**held, "params": {**held["params"], "optimizer.lr": 0.5}}
    assert "trial 1 that the study does not have" in str(gather.foreign(other, searched, "abc"))
    old = {name: part for name, part in held.items() if name != "members"}
    assert "earlier version" in str(gather.foreign(old, searched, "abc"))


def test_a_model_that_is_not_the_winner_s_any_more_is_said(folder: Path) -> None:
    searched = simple(folder)
    held = metrics(searched)
    assert gather.outdated(held, searched, None) is None
    earlier = {**held, "trial": 0}
    assert gather.outdated(earlier, searched, None) == "The model is of trial 0; the best is now trial 1. "
    confirmed = confirmation_of(searched, choice=0)
    assert "the confirmed choice is now trial 0" in str(gather.outdated(held, searched, confirmed))
    assert gather.outdated({**earlier, "chosen": {"by": "trial"}}, searched, None) is None
    doubt = ("The model is of trial 0; the best is now trial 1. ", Code("mmsearch retrain-best"), " trains that one.")
    assert "trial 1. mmsearch retrain-best trains" in words(build(material_of(searched, held, doubts=(doubt,))))


# What is said, in HTML and Markdown, is what is meant, whatever it is made of.

HOSTILE = "a_b & 100 % #1 <script>alert(1)</script> | $x$ `c` \\d [e](f) *g* ~h~ é 犬 </script> &lt; --i"
SIGNS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1, max_size=40)


class Texts(HTMLParser):
    """The texts of a page's elements by their place; those of scripts and styles are not looked at."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def small(text: str) -> Report:
    """A report that has a text everywhere."""
    rows = [[Cell(text), Cell(text, best=True)]]
    blocks = (
        paragraph(text),
        note(text, Code(text)),
        table("t", text, [Column(text), Column("code", code=True)], rows),
        Picture(figure(title=text, caption=text)),
    )
    return Report(text, text, (Section("one", text, blocks),))


@settings(max_examples=30, deadline=None)
@given(SIGNS)
def test_html_says_what_is_meant(text: str) -> None:
    page = render_html(small(text))
    body = page[page.index("<body>") : page.index('<script type="application/json" id="templates">')]
    found = Texts()
    found.feed(body)
    said = "".join(found.found)
    assert said.count(text) >= 10
    assert set(found.tags) <= {
        *("body", "div", "header", "button", "h1", "h2", "p", "nav", "details", "summary", "ol", "li", "a", "main"),
        *("section", "b", "code", "table", "thead", "tbody", "tr", "th", "td", "figure", "script", "figcaption"),
        *("noscript",),
    }


@settings(max_examples=30, deadline=None)
@given(SIGNS)
def test_markdown_says_what_is_meant(text: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(render_markdown(small(text), "figures"))
    said = []
    for token in tokens:
        assert token.type not in ("html_block", "code_block", "hr")
        for part in token.children or ():
            assert part.type != "html_inline"
        if token.type == "inline":
            said.append("".join(part.content for part in token.children or () if part.type in ("text", "code_inline")))
    plain = re.sub(r"\s+", " ", text).strip()
    assert sum(plain in re.sub(r"\s+", " ", one) for one in said) >= 6


def test_what_stands_in_a_figure_cannot_end_its_script() -> None:
    made = figure(title=HOSTILE, caption=HOSTILE)
    made.plot.update_layout(title=HOSTILE)
    for page in (
        render_html(Report("t", "s", (Section("one", "One", (Picture(made),)),))),
        render_figure(made, "p.js"),
    ):
        data = re.search(r'<script type="application/json"[^>]*>(\{"data".*?)</script>', page)
        assert data is not None
        assert json.loads(data[1])["layout"]["title"]["text"] == HOSTILE
        assert "alert(1)</script>" not in page


def test_each_reference_is_listed_where_it_is_cited(folder: Path) -> None:
    report = build(material_of(simple(folder)))
    page = render_html(report)
    assert report.cited()
    for key in report.cited():
        assert f'href="#ref-{key}"' in page
        assert f'id="ref-{key}"' in page
    assert set(report.cited()) < set(REFERENCES)


# The files.


@pytest.fixture
def workspace(searched: Path, tmp_path: Path) -> Path:
    shutil.copytree(searched, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def quick(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace where figures cost nothing, and no browser draws them."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("BROWSER_PATH", str(workspace / "none"))
    monkeypatch.setattr(gather, "figures_of", lambda searched: [figure("history")])
    monkeypatch.setattr(gather, "model_figures", lambda bundle, dataset, **more: [figure("confusion")])
    return workspace


def test_the_files_of_a_report(quick: Path) -> None:
    notes: list[str] = []
    steps: list[str] = []
    paths = write.make_report(load_config("studies/digits.toml"), on_note=notes.append, on_step=steps.append)
    assert paths == ReportPaths(quick / "storage" / "digits" / "report")
    files = {path.relative_to(paths.folder).as_posix() for path in paths.folder.rglob("*") if path.is_file()}
    assert files == {
        *("index.html", "report.md", "report.tex", "trials.csv", "trials.md", "trials.tex", ".mmsearch-report"),
        *("figures/plotly.min.js", "figures/history.html", "figures/confusion.html"),
    }
    assert len(paths.trials("csv").read_text().splitlines()) == 7
    (said,) = notes
    assert "Chrome" in said
    for path in (paths.markdown, paths.latex):
        text = path.read_text()
        assert "There are no pictures of the figures" in text
        assert ".png" not in text
    assert 'src="plotly.min.js"' in paths.figure("history", "html").read_text()
    assert all(re.fullmatch(r".+: \d+\.\d s", step) for step in steps)
    held = json.loads((quick / "storage/digits/retrained/best/metrics.json").read_text())
    assert f"a macro F1 of {held['test']['macro_f1']:.4f} (95 % interval" in paths.markdown.read_text()
    for path in (paths.page, paths.markdown, paths.latex):
        assert str(quick) not in path.read_text()  # nobody's disk is told


def test_an_old_report_stays_until_the_new_one_is_whole(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("studies/digits.toml")
    out = quick / "out"
    write.make_report(config, out=out)
    (out / "mine.txt").write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def broken(report: Report) -> str:
        raise MmsearchError("broken off")

    with monkeypatch.context() as patch:
        patch.setattr(write, "render_html", broken)
        with pytest.raises(MmsearchError, match="broken off"):
            write.make_report(config, out=out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in quick.glob(".*")] == []
    write.make_report(config, out=out)
    assert (out / "mine.txt").read_text() == "mine"


def test_what_only_an_earlier_report_had_is_removed(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = load_config("studies/digits.toml"), quick / "out"
    (out / "figures").mkdir(parents=True)
    mine = [out / "figures" / "mine.html", quick / "elsewhere.html"]
    for path in mine:
        path.write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(gather, "figures_of", lambda searched: [figure("history"), figure("contours")])
        paths = write.make_report(config, out=out)
    assert paths.figure("contours", "html").is_file()
    held = out / ".mmsearch-report"
    held.write_text(f"{held.read_text()}../elsewhere.html\n{mine[1]}\n")  # a list is trusted within its folder only
    write.make_report(config, out=out)
    assert not paths.figure("contours", "html").exists()
    assert paths.figure("history", "html").is_file()
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert "contours" not in held.read_text()


def test_trials_that_end_meanwhile_are_in_all_of_a_report_or_in_nothing(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("studies/digits.toml")
    shutil.rmtree(quick / "storage/digits/retrained")

    def add(value: float) -> None:
        with open_study(config) as other:
            best = other.picked()
            other.optuna.add_trial(create_trial(params=best.params, distributions=best.distributions, value=value))

    def draw(searched: Searched) -> list[Figure]:
        assert len(searched.trials) == 7
        add(0.999)
        return [figure("history")]

    monkeypatch.setattr(gather, "figures_of", draw)
    paths = write.make_report(config, retrain=lambda config: add(0.998))
    said = paths.markdown.read_text()
    assert "Of 7 trials, trial 6 is the best, with a validation macro F1 of 0.9980" in said
    assert len(paths.trials("csv").read_text().splitlines()) == 8  # and the header


def test_a_model_is_made_only_where_there_is_none(quick: Path) -> None:
    config = load_config("studies/digits.toml")
    asked: list[object] = []
    with open_study(config) as opened:
        assert gather.gather(opened, retrain=asked.append, ablate=None).model is not None
        assert asked == []
        stored = quick / "storage/digits/retrained"
        link = (stored / "best").resolve()
        metrics_file = link / "metrics.json"
        held = json.loads(metrics_file.read_text())
        metrics_file.write_text(json.dumps({**held, "data": {**held["data"], "fingerprint": "other"}}))
        found = gather.gather(opened, retrain=asked.append, ablate=None)
        assert (found.model, asked) == (None, [config])
        assert "other data than the study has now" in str(found.doubts)
        shutil.rmtree(stored)
        found = gather.gather(opened, retrain=None, ablate=None)
    assert (found.model, found.doubts, asked) == (None, (), [config])
    said = words(build(found))
    assert "There is no retrained model to report" in said
    assert "mmsearch retrain-best" in said


def test_without_its_data_only_a_report_that_trains_nothing_is_made(quick: Path) -> None:
    config = load_config("studies/digits.toml", {"data.source": "gone"})
    with open_study(config) as opened:
        with pytest.raises(DataError, match="gone"):
            gather.gather(opened, retrain=lambda config: None, ablate=None)
        found = gather.gather(opened, retrain=None, ablate=None)
    assert found.dataset is None
    said = words(build(found))
    assert "The data could not be read (gone: no such folder" in said
    assert "The data set is gone, which was not there when this was written." in said
    assert found.model is not None
    assert found.model.figures == ()


def test_what_is_wrong_is_one_sentence(mmsearch: Run, quick: Path) -> None:
    config = load_config("studies/digits.toml", {"study.name": "empty"})
    create_study(config, load_dataset(config).fingerprint)
    with pytest.raises(NoCompletedTrial, match="no trial is complete"):
        write.make_report(config)
    with pytest.raises(StudyMismatch, match="was begun with"):
        write.make_report(load_config("studies/digits.toml", {"study.seed": 5}))
    (quick / "file").write_text("")
    done = mmsearch("report", "--out", "file", code=2)
    assert done.stderr == "mmsearch: file is a file; --out takes a folder\n"
    assert done.stdout == ""


# In a browser.


@pytest.fixture(scope="module")
def reported(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    """A real report of the tiny search, with its ablation and pictures."""
    import subprocess

    require("chromium")
    folder = tmp_path_factory.mktemp("reported") / "w"
    shutil.copytree(searched, folder, symlinks=True)
    done = subprocess.run(
        [MMSEARCH, "report", "--ablate", "--seeds", "2", "--workers", "2"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    paths = ReportPaths(folder / "storage" / "digits" / "report")
    assert [Path(line) for line in done.stdout.splitlines()][:4] == [
        *(paths.page, paths.markdown, paths.latex, paths.figures),
    ]
    return paths


@pytest.mark.slow
def test_every_picture_is_there(reported: ReportPaths) -> None:
    named = re.findall(r"!\[[^\n]*\]\((figures/[a-z_]+\.png)\)", reported.markdown.read_text())
    assert len(named) > 10
    for name in named:
        path = reported.folder / name
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.with_suffix(".svg").read_text().startswith("<svg")
        assert path.with_suffix(".html").is_file()
    assert set(re.findall(r"figures/[a-z_]+\.png", reported.latex.read_text())) == set(named)


@pytest.mark.slow
def test_the_page_opens_in_a_browser(reported: ReportPaths) -> None:
    from playwright.sync_api import sync_playwright

    assert reported.page.stat().st_size < 8_000_000
    alone = reported.folder.parent / "alone" / "moved.html"  # it needs nothing beside it
    alone.parent.mkdir()
    shutil.copy(reported.page, alone)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require("chromium"), args=BROWSER_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000}, color_scheme="light")
        page.set_default_timeout(120_000)
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
        page.on("requestfailed", lambda request: wrong.append(request.url))

        page.goto(alone.as_uri())
        page.locator("html[data-drawn=light]").wait_for()
        figures = page.locator("figure[data-figure]")
        assert figures.count() == reported.markdown.read_text().count("\n**Figure ")
        for at in range(figures.count()):
            drawn = figures.nth(at).locator("svg.main-svg").first.bounding_box()
            assert drawn is not None
            assert drawn["width"] == float(str(figures.nth(at).get_attribute("data-width")))
            assert drawn["height"] == float(str(figures.nth(at).get_attribute("data-height")))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.get_by_role("navigation").get_by_role("link", name="Limits").is_visible()

        def colours() -> list[str]:
            found: list[str] = page.evaluate(
                "[getComputedStyle(document.body).backgroundColor,"
                " getComputedStyle(document.querySelector('.plot svg.main-svg')).backgroundColor]"
            )
            return found

        assert colours() == ["rgb(255, 255, 255)"] * 2
        page.get_by_role("button", name="Dark page").click()
        page.locator("html[data-drawn=dark]").wait_for()
        assert colours() == ["rgb(20, 24, 31)"] * 2
        page.get_by_role("button", name="Light page").click()
        page.locator("html[data-drawn=light]").wait_for()
        page.emulate_media(color_scheme="dark")  # whoever has chosen keeps the choice
        assert colours() == ["rgb(255, 255, 255)"] * 2

        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        single = browser.new_page()
        single.on("pageerror", lambda error: wrong.append(str(error)))
        single.goto(reported.figure("history", "html").as_uri())
        single.locator("svg.main-svg").first.wait_for()
        browser.close()
    assert wrong == []
