"""Train each complete trial of a study again, as `mmsearch retrain-best --trial N --no-calibrate` does, and score it.

python -m comparison.retrain_all STUDY --out FILE [--seed 0]

The exports and figures of that command are left out. FILE is a JSON list of macro F1 on the test rows, by trial.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from optuna.trial import TrialState

from mmsearch.config import load_config
from mmsearch.data.sources import load_dataset
from mmsearch.paths import write_text
from mmsearch.results.members import train_member
from mmsearch.results.plans import make_plan
from mmsearch.search.study import open_study
from mmsearch.training.batches import Batches
from mmsearch.training.device import choose_device, use_threads
from mmsearch.training.fit import Scores, evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = load_config(args.study, {"study.seed": args.seed})
    use_threads(1)
    device, scores = choose_device("cpu"), []
    with open_study(config) as opened:
        dataset = load_dataset(config)
        assert dataset.test is not None
        test = Batches(dataset.test, device)
        for trial in opened.trials():
            assert trial.state == TrialState.COMPLETE, f"trial {trial.number} is {trial.state.name}"
            planned = make_plan(opened, trial=trial.number, rule=None, ensemble=1, calibrate=False).members[0]
            model = train_member(config, dataset, dataset.train, planned, device).model
            scores.append(Scores.of(evaluate(model, test)).macro_f1)
    write_text(args.out, json.dumps(scores) + "\n")


if __name__ == "__main__":
    main()
