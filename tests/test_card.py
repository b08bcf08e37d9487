"""The model card: what it must say, with the numbers of metrics.json, as Markdown that shows what it means."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from mmsearch.config import load_config
from mmsearch.data.dataset import Dataset
from mmsearch.data.sources import load_dataset
from mmsearch.results.bundle import Bundle
from mmsearch.results.card import model_card
from mmsearch.search.study import OpenStudy, open_study


@dataclass
class Case:
    """All that a card is made from."""

    opened: OpenStudy
    dataset: Dataset
    bundle: Bundle
    metrics: dict[str, Any]

    def card(self, **metrics: Any) -> str:
        return model_card(self.opened, self.dataset, self.bundle, {**copy.deepcopy(self.metrics), **metrics})


@pytest.fixture(scope="module")
def workspace(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    shutil.copytree(searched, folder, symlinks=True, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def case(workspace: Path) -> Iterator[Case]:
    config = load_config(workspace / "studies" / "digits.toml")
    best = workspace / "storage" / "digits" / "retrained" / "best"
    with open_study(config) as opened:
        yield Case(opened, load_dataset(config), Bundle.load(best), json.loads((best / "metrics.json").read_text()))


def section(card: str, title: str) -> str:
    """What stands under a heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", card, re.M | re.S)
    assert found is not None, f"no section {title}"
    return found[1]


def rendered(card: str) -> str:
    html: str = MarkdownIt("commonmark").enable("table").render(card)
    return html


def test_the_card_of_a_bundle_is_the_one_in_its_folder(case: Case, workspace: Path) -> None:
    path = workspace / "storage" / "digits" / "retrained" / "best" / "model_card.md"
    assert path.read_text() == case.card()


def test_the_card_says_what_it_must(case: Case) -> None:
    card, held = case.card(), case.metrics
    assert card.startswith(f"# digits, trial {held['trial']}\n")
    test = held["test"]
    low, high = test["macro_f1_interval"]
    assert rf"{test['macro_f1']:.4f} \[{low:.4f}, {high:.4f}\]" in section(card, "Scores")
    assert "400 training rows, which the model has seen" in section(card, "Scores")
    assert f"a temperature of {held['calibration']['temperature']:.3f}, fitted on 80" in section(card, "Calibration")
    assert held["calibration"]["remarks"][0] in section(card, "Calibration")
    gain = held["modalities"]["account"]["fusion_gain"]
    assert f"{gain['macro_f1']:.4f}" in section(card, "What each modality brings")
    assert "400 training rows and 1,000 test rows" in section(card, "Data")
    assert "CC BY-SA 4.0" in section(card, "Data")
    searched = section(card, "Search")
    assert "6 trials (" in searched
    assert "complete" in searched
    assert "0.001 to 0.01, logarithmic" in searched
    assert "optimizer.lr" in searched
    limits = section(card, "Limits")
    assert "The 1,000 test rows hold 1,000 different images and 600 different recordings" in limits
    assert "`mmsearch confirm`" in limits
    use = section(card, "Use")
    for form in ("model.safetensors", "model.pt2", "model.onnx"):
        assert re.search(rf"^\| {form} +\| \d\.\de-\d+ on 1,000 rows|^\| {form} +\| 0\.0e\+00 on 1,000 rows", use, re.M)
    assert "mmsearch predict" in use
    training = section(card, "Training")
    assert str(held["seed"]) in training
    assert f"torch {held['versions']['torch']}" in training
    assert len(re.findall(r"^\| \d ", section(card, "Each class"), re.M)) == 10


def test_the_tables_are_tables(case: Case) -> None:
    html = rendered(case.card())
    assert html.count("<table>") == 7
    assert "| " not in re.sub(r"<code.*?</code>", "", html, flags=re.S)  # no row was left as text


@pytest.mark.parametrize(
    "name", ["a|b", "<script>alert(1)</script>", "*bold*", "[x](http://y)", "`code`", "_under_", "a\nb", "$x$"]
)
def test_class_names_are_text(case: Case, name: str) -> None:
    classes = (name, *case.bundle.classes[1:])
    bundle = replace(case.bundle, trained=replace(case.bundle.trained, classes=classes))
    test = copy.deepcopy(case.metrics["test"])
    test["per_class"] = dict(zip(classes, test["per_class"].values(), strict=True))
    other = replace(case, bundle=bundle)
    html = rendered(other.card(test=test))
    assert html.count("<table>") == 7
    assert html.count("<tr>") == rendered(case.card()).count("<tr>")
    for tag in ("<script>", "<em>", "<a ", "<strong>"):
        assert tag not in html
    shown = name.replace("\n", " ").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<td>{shown}</td>" in html


def test_the_card_says_what_was_not_done(case: Case) -> None:
    card = case.card(
        calibration=None,
        exports={"safetensors": {"largest_difference": 0.0, "rows": 5, "ties": 1}, "onnx": {"skipped": "no onnx here"}},
        searched={**case.metrics["searched"], "violated": "parameters = 9 violates parameters <= 8"},
    )
    assert "It was left out" in section(card, "Calibration")
    assert "| no onnx here" in section(card, "Use")
    assert "on 5 rows, all labels the same but for 1 tie" in section(card, "Use")
    assert "onnxruntime" not in card
    assert "pickles" not in card
    assert "does not keep to the study's constraints: parameters = 9 violates parameters \\<= 8." in section(
        card, "Limits"
    )


def test_the_card_of_a_model_without_a_test_split_says_so(case: Case) -> None:
    data = {**case.metrics["data"], "test_rows": 0}
    modalities = {**case.metrics["modalities"], "scored_on": "training"}
    other = replace(case, dataset=replace(case.dataset, test=None, layout="manifest"))
    card = other.card(test=None, data=data, modalities=modalities)
    assert "No labelled rows were kept from training" in section(card, "Limits")
    assert "No row of the test split" not in card
    assert "CC BY-SA" not in card
    assert "On the 400 training rows, which the model has seen" in section(card, "Each class")


def test_the_card_of_an_ensemble_that_was_confirmed_and_abstains(case: Case) -> None:
    member = case.metrics["members"][0]
    other = {**member, "trial": 5, "params": {**member["params"], "optimizer.lr": 0.0012345678}}
    bundle = replace(case.bundle, members=case.bundle.members * 2, abstain_below=0.75)
    calibration = {**case.metrics["calibration"], "abstain_below": 0.75, "asked": "coverage=0.9", "coverage": 0.9,
                   "accuracy_kept": 0.95}  # fmt: skip
    test = {**case.metrics["test"], "kept": {"coverage": 0.912, "accuracy": None}}
    confirmed = {"mean": 0.9, "interval": [0.8, 1.0], "seeds": 3, "drop": 0.1}
    made = replace(case, bundle=bundle)
    card = made.card(members=[member, other], calibration=calibration, test=test, confirmed=confirmed)
    assert card.splitlines()[2].startswith("An ensemble of 2 classifiers")
    assert "below 0.7500 (asked for: coverage=0.9)" in section(card, "Calibration")
    assert "keeps 90.0%, with an accuracy of 0.9500; of the test rows 91.2%, with none" in section(card, "Calibration")
    assert "mmsearch confirm" not in section(card, "Limits")
    assert ", 0.00123457 " in section(card, "Search")


def test_an_interval_of_few_mistakes_is_said_to_be_too_narrow(case: Case) -> None:
    assert case.metrics["test"]["mistakes"] >= 5
    assert "Beware" not in section(case.card(), "Scores")
    for mistakes, said in ((0, "no row was wrong: of new rows up to 0.30% may be"), (2, "it rests on 2 mistakes")):
        scores = section(case.card(test={**case.metrics["test"], "mistakes": mistakes}), "Scores")
        assert "Beware: on the test rows the bootstrap interval of the macro F1 is too narrow" in scores
        assert said in scores
    account = copy.deepcopy(case.metrics["modalities"]["account"])
    account["audio_alone"]["mistakes"], account["fusion_gain"]["differing"] = 1, 0
    brought = section(
        case.card(modalities={**case.metrics["modalities"], "account": account}), "What each modality brings"
    )
    assert "with fewer than 5 mistakes an interval is too narrow; here of audio alone.\n" in brought
    assert "since the better one alone says the same of every row: of new rows up to 0.30% may differ" in brought


def test_the_card_does_not_say_where_its_writer_keeps_data(case: Case) -> None:
    dataset = replace(case.dataset, source="/home/somebody/secret/birds", layout="manifest")
    data = section(replace(case, dataset=dataset).card(), "Data")
    assert data.lstrip().startswith("Data set: `birds` (layout")
    assert "somebody" not in data
