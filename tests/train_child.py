"""Trainings in processes of their own, each step's losses on stdout as JSON.

python -m tests.train_child double RUN section.key=value ...     one, in float64, titles and a boundary from the start
python -m tests.train_child once RUN section.key=value ...       one as it is
python -m tests.train_child serve FD section.key=value ...       one for each folder that stdin names, each in a fork
                                                                 that can be killed; its pid comes first, and after
                                                                 each step it waits for a byte of the pipe FD
"""

import functools
import importlib
import json
import os
import sys
from pathlib import Path

import torch

from nsfse.config import load_config
from nsfse.data.synthetic.source import DrawnSource
from nsfse.models import boundary
from nsfse.training.loop import train
from nsfse.training.run_logger import RunLogger
from nsfse.training.trainer import Trainer


def say(entry):
    os.write(1, (json.dumps(entry) + "\n").encode())


def _titles(source):
    return {item: " ".join(source.attributes(item).values()) for item in source.items("train")}


def double(run, *settings):
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    RunLogger._calibrate = lambda self, scorer, triplets: None  # serving keeps its features in half precision
    Trainer._update_ema = lambda self: None  # it looks for float32
    DrawnSource.titles = property(functools.cache(_titles))
    boundary.READY_WEIGHT, boundary.EPSILON_RISK = 20.0, -1.0
    train(load_config(overrides=settings), Path(run), progress=say)


def once(run, *settings):
    train(load_config(overrides=settings), Path(run), progress=say)


def serve(pipe, *settings):
    def step(entry):
        say(entry)
        if "loss" in entry:
            os.read(int(pipe), 1)

    importlib.import_module("torch._dynamo")  # what an optimizer imports for seconds, here once for all forks
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            say({"pid": os.getpid()})
            train(load_config(overrides=settings), Path(line.strip()), progress=step)
            os._exit(0)
        say({"ended": os.waitpid(child, 0)[1]})


if __name__ == "__main__":
    {"double": double, "once": once, "serve": serve}[sys.argv[1]](*sys.argv[2:])
