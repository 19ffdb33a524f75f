"""The loop: it learns, the same seed gives the same weights, a stopped run continues as if it had not stopped."""

import hashlib
import shutil
import time

import pytest

pytest.importorskip("torch")

from nsfse.config import load_config
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.models.checkpoint import DECISION, load_checkpoint, load_tensors
from nsfse.open import open_scorer
from nsfse.training.loop import train
from nsfse_runtime.errors import IntegrityError, NotFoundError, OutputError, UsageError

SMALL = [
    'data.source="drawn"',
    'data.options.level="easy"',
    "data.options.gallery=96",
    "data.options.items=64",
    "data.options.triplets=48",
    "data.validation_queries=4",
    "data.fitting_queries=20",
    "model.image_size=[32,48]",
    "model.width=16",
    "model.dim=16",
    "train.batch=16",
    "train.candidates=6",
    "train.epochs=2",
]


def weights(run):
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    result = train(load_config(overrides=SMALL), run)
    assert not result.interrupted
    return run


def test_run_leaves_what_others_need(whole):
    for name in ("config.json", "tokenizer.json", "model.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (whole / name).exists(), name
    checkpoint = load_checkpoint(whole)
    assert checkpoint.model.config.image_size == (32, 48)
    assert '"t_c"' in (whole / "metrics.jsonl").read_text()
    told = checkpoint.info["trained_on"]
    assert told["texts"] == 2 * told["triplets_per_epoch"]
    assert told["texts_cut"] == told["texts_with_unknown_words"] == told["texts_unreadable"] == 0


def test_only_the_mix_and_the_boundaries_of_the_served_weights_are_not_the_trainers(tmp_path, monkeypatch):
    import msgspec

    monkeypatch.setattr("nsfse.models.boundary.READY_WEIGHT", 5.0)
    monkeypatch.setattr("nsfse.models.boundary.solve_boundary", lambda matched, mismatched, alpha: (0.3, 0.7))
    train(load_config(overrides=SMALL), tmp_path / "run")
    served = load_tensors(tmp_path / "run" / "model.safetensors")
    state = load_tensors(tmp_path / "run" / "state.safetensors")
    average = {k.removeprefix("average."): v for k, v in state.items() if k.startswith("average.")}
    boundaries = [f"head.{kind}_boundary.state" for kind in ("cross", "visual")]
    differing = {name for name, value in served.items() if not value.equal(average[name])}
    assert served.keys() == average.keys() and differing <= {"head.mix", *boundaries}
    assert differing == {"head.mix", *boundaries}
    assert all(state[f"model.{name}"].equal(average[name]) for name in boundaries)  # training's own, still streamed
    entries = [msgspec.json.decode(line) for line in (tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines()]
    last = [entry for entry in entries if "epoch" in entry][-1]
    assert last["t_c"]["refit"] == "refitted" and last["t_c"]["t"] == float(served[boundaries[0]][6])
    assert {"mu_p", "sd_p", "mu_n", "sd_n", "risk"} <= last["t_v"].keys()


def test_a_refit_that_is_refused_is_said_and_training_s_boundary_served(tmp_path):
    notes = []
    train(
        load_config(overrides=SMALL), tmp_path / "run", steps=4, progress=lambda entry: notes.append(entry.get("note"))
    )
    assert "t_c of the served weights: too few samples; training's 0.000 stays" in notes
    served, state = (load_tensors(tmp_path / "run" / f"{name}.safetensors") for name in ("model", "state"))
    assert served["head.cross_boundary.state"].equal(state["model.head.cross_boundary.state"])
    assert not served["head.mix"].equal(state["average.head.mix"])  # fitted within an epoch, too


def test_the_last_weights_come_with_what_tells_a_match(whole, tmp_path):
    from nsfse.evaluation.features import source_images
    from nsfse.training.calibration import fit_decision

    scorer, source = open_scorer(whole), DrawnSource(DrawnOptions("easy", items=64, triplets=48, gallery=96))
    again = fit_decision(scorer, source, "val", [], source_images(source, scorer.image_size), 20)
    assert load_checkpoint(whole).decision == scorer.decision == again != None  # noqa: E711
    assert load_checkpoint(whole, "best").decision is None
    for name in ("config.json", "tokenizer.json", "model.safetensors", DECISION):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    (tmp_path / DECISION).write_text('{"weights": [1, 2]}')
    with pytest.raises(IntegrityError, match=r"decision\.json is damaged"):
        load_checkpoint(tmp_path)
    (tmp_path / DECISION).unlink()
    assert load_checkpoint(tmp_path).decision is None


def test_steps_in_all_end_training_within_an_epoch_with_all_that_an_end_leaves(tmp_path):
    config = load_config(overrides=[*SMALL, "train.total_steps=4", "data.validation_queries=0"])  # three steps an epoch
    entries = []
    result = train(config, tmp_path / "run", progress=entries.append)
    assert not result.interrupted and result.metrics["step"] == 4 and result.metrics["epoch"] == 2
    steps = [(entry["step"], entry["of"]) for entry in entries if "of" in entry]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    rates = [entry["lr"] for entry in entries if "of" in entry]
    assert rates[-1] < 0.05 * config.train.lr  # the schedule ends with them
    assert (tmp_path / "run" / DECISION).exists()
    before = weights(tmp_path / "run")
    train(config, tmp_path / "run", progress=entries.append)
    said = [entry for entry in entries if "note" not in entry]
    assert len(said) == 6 and weights(tmp_path / "run") == before  # four steps and two epochs, and no more


def test_a_run_of_steps_in_all_stopped_in_its_last_part_of_an_epoch_continues(tmp_path):
    settings = ["train.total_steps=5", "model.method=sum", "data.validation_queries=0"]
    config = load_config(overrides=[*SMALL, *settings])
    assert not train(config, tmp_path / "whole").interrupted
    stops = iter([False, False, False, True])  # asked after each step, the fourth is in the second epoch
    stopped = train(config, tmp_path / "parts", should_stop=lambda: next(stops))
    assert stopped.interrupted and int(load_tensors(tmp_path / "parts" / "state.safetensors")["step"]) == 4
    assert not train(config, tmp_path / "parts").interrupted
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_starting_afresh_and_stopping_early_leave_no_old_decision(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    train(load_config(overrides=SMALL), tmp_path / "run", resume=False, steps=4)
    assert (tmp_path / "run" / "model.safetensors").exists() and not (tmp_path / "run" / DECISION).exists()


def test_same_seed_same_weights(whole, tmp_path):
    """Broken once: the seed of a step drawn from the system."""
    train(load_config(overrides=SMALL), tmp_path / "again")
    assert weights(tmp_path / "again") == weights(whole)
    assert (tmp_path / "again" / DECISION).read_bytes() == (whole / DECISION).read_bytes()
    for seed in (0, 1):
        train(load_config(overrides=[*SMALL, f"train.seed={seed}"]), tmp_path / f"{seed}", steps=1)
    assert weights(tmp_path / "0") != weights(tmp_path / "1")


@pytest.mark.parametrize("workers", [1, 4])
def test_weights_do_not_depend_on_how_many_read_images(whole, tmp_path, monkeypatch, workers):
    load, late = DrawnSource.load, [0.002, 0.0, 0.001]

    def slow(self, item, size):
        time.sleep(late[sum(item.encode()) % 3])  # some come later than others, so that their order would show
        return load(self, item, size)

    monkeypatch.setattr(DrawnSource, "load", slow)
    train(load_config(overrides=[*SMALL, f"train.workers={workers}"]), tmp_path / "run")
    assert weights(tmp_path / "run") == weights(whole)


def test_torch_is_asked_for_deterministic_algorithms_while_it_trains(tmp_path):
    import torch

    seen = []
    train(
        load_config(overrides=[*SMALL, "train.epochs=1"]),
        tmp_path / "run",
        progress=lambda entry: seen.append(torch.are_deterministic_algorithms_enabled()),
    )
    assert all(seen) and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_stopped_run_resumes_to_the_same_weights(whole, tmp_path, stop, monkeypatch):
    import os
    import signal

    def interrupt(entry):
        if entry.get("step") == stop and "loss" in entry:
            os.kill(os.getpid(), signal.SIGINT)

    first = train(load_config(overrides=SMALL), tmp_path / "run", progress=interrupt)
    assert first.interrupted
    assert int(load_tensors(tmp_path / "run" / "state.safetensors")["step"]) == stop
    second = train(load_config(overrides=SMALL), tmp_path / "run")
    assert not second.interrupted
    assert weights(tmp_path / "run") == weights(whole)
    assert (tmp_path / "run" / DECISION).read_bytes() == (whole / DECISION).read_bytes()


@pytest.mark.parametrize("step", ["fitting boundaries and score weights", "fitting the confidence"])
def test_a_signal_ends_the_fits_and_the_run_goes_on_with_them(whole, tmp_path, step):
    import os
    import signal

    notes = []

    def interrupt(entry):
        notes.append(entry.get("note"))
        if notes[-1] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(load_config(overrides=SMALL), tmp_path / "run", progress=interrupt).interrupted
    assert notes[-1] == step  # nothing was fitted after it
    assert not train(load_config(overrides=SMALL), tmp_path / "run").interrupted
    assert weights(tmp_path / "run") == weights(whole)
    assert (tmp_path / "run" / DECISION).read_bytes() == (whole / DECISION).read_bytes()


def test_a_place_for_no_run_is_refused_before_data_are_read(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        train(load_config(overrides=['data.source="catalogue"', 'data.folder="nowhere"']), tmp_path / "file")


def test_another_configuration_is_refused(whole):
    with pytest.raises(UsageError, match="another configuration"):
        train(load_config(overrides=[*SMALL, "train.lr=0.5"]), whole)


def test_damaged_weights_are_refused(whole, tmp_path):
    with pytest.raises(NotFoundError):
        load_checkpoint(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:100])
    with pytest.raises(IntegrityError, match="damaged"):
        load_checkpoint(tmp_path)
