"""Processes that train together, for the time of one task."""

import multiprocessing
import pickle

from torch import distributed

from medfocal.train.ranks import Ranks


def together(task, folder, *, count=2, timeout=120):
    """What `task(ranks)`, a function of an importable module, gives in each of several gloo processes, by rank."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_join, args=(rank, count, folder, task)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * count
    return [pickle.loads((folder / f"answer-{rank}").read_bytes()) for rank in range(count)]


def _join(rank, count, folder, task):
    import torch

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=count)
    answer = task(Ranks(rank, count, rank, distributed.new_group(backend="gloo")))
    (folder / f"answer-{rank}").write_bytes(pickle.dumps(answer))
    distributed.destroy_process_group()
