"""The queue: cells are neither lost nor counted twice, whoever dies; and what is in the way is said."""

import errno
import json
import math
import multiprocessing
import os
import random
import resource
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress

import optuna
import pytest
import torch

from simam_inject.compare import compare, load_comparison, study
from simam_inject.compare.cells import Cell, Report, Variant
from simam_inject.compare.study import Study
from simam_inject.errors import CompareError
from tests.compare.networks import RECIPE, make_model, noisy
from tests.messages import says

PLAIN, SIMAM = Variant("plain"), Variant("simam", "paper")
POSTGRESQL = os.environ.get("SIMAM_INJECT_POSTGRESQL")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "study.journal"


def open_study(file, *variants, seeds=1, **more):
    return Study(file, {}, variants or (PLAIN,), seeds, **more)


def elsewhere(queue, machine="elsewhere:1"):
    """Make the study act as a worker on another machine, or of another process."""
    queue.worker = machine
    return queue


def finish(queue, claim, value=1.0):
    trial, variant, seed = claim
    queue.end(trial, Cell(variant.name, variant.recipe, seed, value))


def keys(comparison):
    return Counter((cell.variant, cell.recipe, cell.seed) for cell in comparison.cells)


def test_cells_come_seed_by_seed_and_each_once(file):
    queue = open_study(file, PLAIN, SIMAM, seeds=3)
    taken = []
    while claim := queue.take():
        taken.append((claim[2], claim[1].name))
        finish(queue, claim)
    assert taken == [(seed, name) for seed in range(3) for name in ("plain", "simam")]
    assert len(queue.comparison().cells) == queue.comparison().total == 6


def test_two_workers_that_claim_at_the_same_time_run_no_cell_twice(file, monkeypatch):
    first, second = (elsewhere(open_study(file, PLAIN, SIMAM), f"elsewhere:{number}") for number in range(2))
    first_claim = first.take()
    seen, looks = study._owners, iter([{}, {}])  # the second looked before the first had claimed anything
    monkeypatch.setattr(study, "_owners", lambda storage: next(looks, None) or seen(storage))
    second_claim = second.take()
    assert [first_claim[1], second_claim[1]] == [PLAIN, SIMAM]
    assert first.take() is second.take() is None
    for queue, claim in ((first, first_claim), (second, second_claim)):
        finish(queue, claim)
    found = first.comparison()
    assert set(keys(found).values()) == {1}
    assert len(found.cells) == found.total == 2


def test_a_trial_of_somebody_else_is_no_cell(file):
    queue = open_study(file)
    queue._study.ask()
    claim = queue.take()
    finish(queue, claim)
    assert queue.take() is None
    assert len(queue.comparison().cells) == queue.comparison().total == 1


def test_a_silent_worker_loses_its_cell_and_cannot_write_it_later(file, monkeypatch):
    slow, other, patient = elsewhere(open_study(file)), open_study(file, retry_stale=True), open_study(file)
    with slow.heartbeat():
        held = slow.take()
    assert other.take() is None  # it had a heartbeat a moment ago
    monkeypatch.setattr(study, "STALE", -1.0)
    assert patient.take() is None
    again = other.take()
    finish(other, again, 2.0)
    finish(slow, held, 1.0)
    assert [one.value for one in other.comparison().cells] == [2.0]


def test_a_heartbeat_keeps_a_cell(file, monkeypatch):
    monkeypatch.setattr(study, "HEARTBEAT", 0.05)
    monkeypatch.setattr(study, "STALE", 1.5)
    queue, other = elsewhere(open_study(file)), open_study(file, retry_stale=True)
    with queue.heartbeat():
        queue.take()
        time.sleep(1.8)
        assert other.take() is None
    time.sleep(1.8)
    assert other.take() is not None


def test_a_cell_of_a_process_or_a_call_of_this_machine_that_ended_is_free_at_once(file):
    child = subprocess.Popen(["true"])
    child.wait()
    first, second, third, fourth = (open_study(file) for _ in range(4))
    elsewhere(first, f"{first.worker.split(':')[0]}:{child.pid}").take()
    assert second.take() is not None
    assert elsewhere(third, f"{third.worker.split(':')[0]}:{os.getppid()}").take() is None  # this process is alive
    assert fourth.take() is not None  # to this process, the claim is of an earlier call


def test_a_container_does_not_judge_by_the_process_ids_of_another(file, monkeypatch):
    """Both have the name of their host, and count processes from 1."""
    first = open_study(file)
    monkeypatch.setattr(study, "_NAMESPACE", file.parent)
    second = open_study(file)
    elsewhere(first, f"{first.machine}:999999999:1").take()
    assert second.take() is None


def test_two_threads_of_one_process_run_no_cell_twice(file):
    first = open_study(file).take()
    taken = []
    thread = threading.Thread(target=lambda: taken.append(open_study(file).take()))
    thread.start()
    thread.join()
    assert first is not None
    assert taken == [None]


def test_a_stopped_run_goes_back_and_the_same_call_goes_on(file):
    runs = []

    def train(model, seed, report):
        runs.append(seed)
        if len(runs) == 4:
            raise KeyboardInterrupt
        return noisy(model, seed, report)

    with pytest.raises(KeyboardInterrupt):
        compare(make_model, [RECIPE], train, seeds=2, storage=file)
    assert len(load_comparison(file).cells) == 3
    comparison = compare(make_model, [RECIPE], train, seeds=2, storage=file)
    assert len(comparison.cells) == comparison.total == 6
    assert len(runs) == 7
    assert set(keys(comparison).values()) == {1}


def test_other_settings_are_refused_by_name_and_nothing_changes(file):
    compare(make_model, [RECIPE], noisy, seeds=1, storage=file, settings={"epochs": 3})
    before = file.read_bytes()
    with pytest.raises(CompareError, match=says("nothing was changed", "epochs: 3 in the study, 4 here")):
        compare(make_model, [RECIPE], noisy, seeds=1, storage=file, settings={"epochs": 4})
    assert load_comparison(file).cells[0].value is not None
    assert file.read_bytes().startswith(before)
    other = compare(make_model, [RECIPE], noisy, seeds=1, storage=file, settings={"epochs": 4}, name="longer")
    assert len(other.cells) == 3


def test_two_workers_that_begin_one_study_at_the_same_time_with_other_settings(file):
    """Both saw no study; the one that wrote last owns it, and no result of the other is stored."""
    first = Study(file, {"epochs": 2}, [PLAIN], 2)
    claim = first.take()
    first._study.set_user_attr("settings", {"epochs": 3, "variants": [["plain", ""]]})
    second = Study(file, {"epochs": 3}, [PLAIN], 2)
    for step in (lambda: finish(first, claim), first.take):
        with pytest.raises(CompareError, match="epochs: 3 in the study, 2 here"):
            step()
    finish(second, elsewhere(second).take())
    assert len(second.comparison().cells) == 1


def test_a_recipe_that_was_edited_is_another_setting(file, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("version: 1\nrules:\n  - {block: Sequential, after: '0'}\n", encoding="utf-8")
    compare(make_model, [str(recipe)], noisy, seeds=1, storage=file)
    recipe.write_text("version: 1\nrules:\n  - {block: Sequential, after: '2'}\n", encoding="utf-8")
    with pytest.raises(CompareError, match=says("nothing was changed", "recipes: ")):
        compare(make_model, [str(recipe)], noisy, seeds=1, storage=file)


def test_the_command_is_recorded_without_the_password_of_the_database(file, monkeypatch):
    words = ["--study", "postgresql+psycopg2://me:se/cret@host:5432/name", "--seeds", "1"]
    monkeypatch.setattr("sys.argv", ["simam-inject", "compare", "resnet18", *words])
    compare(make_model, [RECIPE], noisy, seeds=1, storage=file)
    assert "cret" not in file.read_text(encoding="utf-8")
    assert "compare resnet18 --study 'postgresql+psycopg2://me:***@" in load_comparison(file).to_markdown()


def test_seeds_that_are_added_after_a_look_are_counted(file):
    once = compare(make_model, [RECIPE], noisy, seeds=5, storage=file)
    same = compare(make_model, [RECIPE], noisy, seeds=5, storage=file)
    more = compare(make_model, [RECIPE], noisy, seeds=7, storage=file)
    assert (once.looks, same.looks, more.looks) == (1, 1, 2)
    assert len(more.cells) == 21
    assert any("multiplied by 2" in note for note in more.notes)


def test_a_budget_ends_it_balanced_and_unfinished(file):
    def train(model, seed, report):
        time.sleep(0.1)
        return noisy(model, seed, report)

    comparison = compare(make_model, [RECIPE], train, seeds=50, storage=file, budget=2.0)
    assert 2 <= len(comparison.cells) < 24
    assert comparison.total == 150
    counts = Counter(cell.seed for cell in comparison.cells)
    assert max(counts.values()) <= 3
    assert len([seed for seed in counts if counts[seed] < 3]) <= 1
    assert any(note.startswith("unfinished: ") for note in comparison.notes)


def test_a_line_that_a_killed_worker_left_half_written_costs_nothing(file):
    queue = open_study(file, seeds=2)
    with file.open("ab") as journal:
        journal.write(b'{"op_code":8,"wor')
    claim = queue.take()
    finish(queue, claim)
    assert all(json.loads(line) for line in file.read_bytes().splitlines())
    assert len(load_comparison(file).cells) == 1


def test_a_learning_curve_that_diverged_is_stored(file):
    def train(model, seed, report):
        report(1, float("nan"))
        report(2, float("inf"))
        return float("nan")

    compare(make_model, [RECIPE], train, seeds=1, storage=file)
    (first, second) = load_comparison(file).cells[0].curve
    assert (math.isnan(first[1]), second) == (True, (2, math.inf))
    assert "diverged" in load_comparison(file).to_markdown()


@contextmanager
def full_disk(path):
    """Files of this process may not grow much more: what a full disk is to a program."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 1200, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_loses_nothing(file):
    compare(make_model, [RECIPE], noisy, seeds=1, storage=file)
    message = says("File too large", "every finished run is saved", "Free some space")
    with full_disk(file), pytest.raises(CompareError, match=message):
        compare(make_model, [RECIPE], noisy, seeds=20, storage=file)
    assert len(load_comparison(file).cells) == 3
    comparison = compare(make_model, [RECIPE], noisy, seeds=20, storage=file)
    assert set(keys(comparison).values()) == {1}
    assert len(comparison.cells) == 60


def test_a_disk_that_fills_up_during_a_run(file):
    def train(model, seed, report):
        if seed == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return noisy(model, seed, report)

    with pytest.raises(CompareError, match=says("No space left on device", "every finished run is saved")):
        compare(make_model, [RECIPE], train, seeds=2, storage=file)
    assert len(compare(make_model, [RECIPE], noisy, seeds=2, storage=file).cells) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.journal", "no such study"),
        (lambda folder: f"sqlite:///{folder}/none.db", "no such study"),
    ],
)
def test_a_study_that_is_not_there(tmp_path, make, message):
    with pytest.raises(CompareError, match=message):
        load_comparison(make(tmp_path))


@pytest.mark.parametrize("text", ["hello", "hello\n", "hello\nworld\n", '{"op_code":0}\nhello\n{}\n'])
def test_a_file_that_is_no_study_is_refused_and_left_alone(tmp_path, text):
    file = tmp_path / "notes.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CompareError, match="is not a study"):
        load_comparison(file)
    with pytest.raises(CompareError, match="is not a study"):
        compare(make_model, [RECIPE], noisy, seeds=1, storage=file)
    assert file.read_text(encoding="utf-8") == text


def test_a_storage_without_the_study_lists_those_that_it_has(file):
    optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    with pytest.raises(CompareError, match="has no study named 'compare'; it has: none"):
        load_comparison(file)


def work(storage, seeds):
    torch.set_num_threads(1)  # a forked process has no OpenMP threads, and would wait for them

    def train(model, seed, report):
        time.sleep(0.05)
        return noisy(model, seed, report)

    compare(make_model, [RECIPE], train, ["se", "eca"], seeds, storage)


class Worker:
    """A worker in a process of its own, that has imported everything already."""

    def __init__(self, storage, seeds):
        self.process = multiprocessing.get_context("fork").Process(target=work, args=(storage, seeds))
        self.process.start()
        self.kill = self.process.kill

    def join(self):
        self.process.join(timeout=600)
        return self.process.exitcode


def kill_workers(storage, *, kills, seeds):
    """Three workers; one drawn at random is killed and replaced, again and again. This process ends the work."""
    chance, storage = random.Random(7), str(storage)

    def count():
        try:
            return len(load_comparison(storage).cells)
        except CompareError:
            return 0

    workers = [Worker(storage, seeds) for _ in range(3)]
    for moment in sorted(chance.sample(range(1, 4 * seeds), kills)):
        while count() < moment:
            time.sleep(0.05)
        victim = chance.randrange(3)
        workers[victim].kill()
        assert workers[victim].join() == -9
        workers[victim] = Worker(storage, seeds)
    killed = count()
    assert [worker.join() for worker in workers] == [0, 0, 0]
    comparison = compare(make_model, [RECIPE], noisy, ["se", "eca"], seeds, storage)
    assert killed < len(comparison.cells) == comparison.total == 5 * seeds
    trials = optuna.load_study(study_name="compare", storage=study.open_storage(storage)).get_trials()
    results = Counter(trial.user_attrs["cell"] for trial in trials if trial.state.name in ("COMPLETE", "FAIL"))
    assert set(results.values()) == {1}
    assert sum(results.values()) == 5 * seeds
    assert [cell.value for cell in comparison.of("se", RECIPE)] == [
        noisy(None, seed, Report()) for seed in range(seeds)
    ]


def test_three_workers_one_killed(file):
    kill_workers(file, kills=1, seeds=12)


@pytest.mark.long
def test_three_workers_one_killed_ten_times(file):
    kill_workers(file, kills=10, seeds=60)


@pytest.mark.long
@pytest.mark.skipif(POSTGRESQL is None, reason="SIMAM_INJECT_POSTGRESQL has no URL; docs/compare.md has the command")
def test_three_workers_on_postgresql_one_killed_ten_times():
    with suppress(KeyError):
        optuna.delete_study(study_name="compare", storage=POSTGRESQL)
    kill_workers(POSTGRESQL, kills=10, seeds=40)
