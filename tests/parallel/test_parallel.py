"""Work in several processes: in order, errors as they are, and nobody left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from operator import call, mul
from pathlib import Path

import pytest

from medfocal.errors import InputError, ResourceError
from medfocal.parallel import in_processes
from medfocal.volume import read_grid


def answers_of(task, items, workers, found=None):
    found = [] if found is None else found
    with in_processes(task, items, workers, what="measured cases") as answers:
        found.extend(answers)
    return found


def test_answers_come_in_the_order_of_the_items_from_other_processes():
    assert answers_of(partial(mul, 2), range(37), 2) == [2 * n for n in range(37)]


def test_one_worker_works_here_and_only_when_asked():
    asked = []
    with in_processes(asked.append, [1, 2, 3], 1, what="noted numbers") as answers:
        assert asked == []
        next(answers)
        assert asked == [1]


def test_one_item_starts_no_process():
    here = []
    answers_of(here.append, [5], 4)
    assert here == [5]


@pytest.mark.parametrize("workers", [1, 3])
def test_nothing_to_do_gives_nothing(workers):
    assert answers_of(abs, [], workers) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_task_is_raised_as_itself_after_the_answers_before_it(workers, tmp_path):
    items = [tmp_path / "gone.nii", tmp_path / "gone too.nii"]
    with pytest.raises(InputError, match=r"gone\.nii' does not exist"):
        answers_of(read_grid, items, workers)
    before = []
    with pytest.raises(ZeroDivisionError):
        answers_of(partial(pow, 0), [2, 1, -1, 3], workers, before)
    assert before == [0, 0]


def test_a_killed_process_is_a_resource_error_that_says_what_it_did():
    with pytest.raises(ResourceError, match=r"a process that measured cases ended without an answer.*workers=1"):
        answers_of(os._exit, [0, 0, 0], 2)


def test_a_killed_process_is_told_with_what_it_worked_on():
    items = [partial(abs, -number) for number in range(40)]
    items[23] = partial(os._exit, 1)
    with (
        pytest.raises(ResourceError, match=r"without an answer while ('\d+' or )?'23'( or '\d+')? was worked on"),
        in_processes(call, items, 2, what="measured cases", name=lambda item: str(items.index(item))) as answers,
    ):
        list(answers)


def test_an_error_in_the_context_ends_the_processes_without_finishing_all():
    def leave():
        with in_processes(time.sleep, [0.05] * 2000, 2, what="slept") as answers:
            raise KeyError(next(answers))

    begun = time.monotonic()
    with pytest.raises(KeyError):
        leave()
    assert time.monotonic() - begun < 30  # all of them would take 50 s
    assert not multiprocessing.active_children()


def test_the_iterator_can_be_left_early():
    with in_processes(abs, range(-100, 0), 2, what="measured cases") as answers:
        assert next(answers) == 100
    assert not multiprocessing.active_children()


PARENT = """
import time
from medfocal.parallel import in_processes
if __name__ == "__main__":
    with in_processes(time.sleep, [0, 0, 600, 600], 2, what="slept") as answers:
        next(answers), next(answers)
        print("working", flush=True)
        list(answers)
"""


def children_of(process):
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(after_name[1]) == process:
            found.add(int(path.parent.name))
    return found


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked to end them, and /proc to list them")
def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout.readline() == "working\n"
            children = children_of(parent.pid)
            assert len(children) >= 2
        finally:
            parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if is_alive(child)]
