"""write a pipeline to start from: it runs as it is, and says where your own data go"""

from __future__ import annotations

import os
from typing import Any

from hetsched.cli.output import folder, write
from hetsched.cli.parser import Parser
from hetsched.errors import CommandLineError, FileError

NAME = "pipeline.yaml"

PIPELINE = """\
# A first pipeline: train a small network, and say how good it is on rows that it has not seen. The data are SYNTHETIC; line 14 says where yours go.
#   hetsched check pipeline.yaml     every mistake, with its line      hetsched plan pipeline.yaml    where and when each op would run
#   hetsched run pipeline.yaml       train, evaluate, save             hetsched run pipeline.yaml -s epochs=20 -d cpu
hetsched: 1
name: first
params: {epochs: 5, batch: 32, lr: 1e-2, seed: 7}
models:
  net:
    input: [20]                       # numbers in a row of the data
    layers:
      - dense: {units: 32, activation: relu}
      - dense: {units: 3}             # classes
tasks:
  # Your own: {op: data.csv, with: {path: data/mine.csv, label: kind}}, or data.npz with arrays x and y. `hetsched ops` lists all ops.
  load:     {op: data.synthetic, with: {rows: 3000, shape: [20], classes: 3, spread: 1.5, seed: $seed}}
  split:    {op: data.split, in: {x: load.x, y: load.y}, with: {test: 0.2, seed: $seed}}
  scale:    {op: data.standardize, in: {train: split.x_train, test: split.x_test}}      # fitted on train, applied to both
  train:
    op: nn.train
    in: {x: scale.train, y: split.y_train}
    with: {model: net, loss: cross_entropy, optimizer: {adam: {lr: $lr}}, epochs: $epochs, batch: $batch, seed: $seed}
  evaluate: {op: nn.evaluate, in: {model: train.model, x: scale.test, y: split.y_test}, with: {metrics: [loss, accuracy]}}
outputs:
  model:   {from: train.model, save: out/model.safetensors}
  metrics: {from: evaluate.metrics, save: out/metrics.json}
"""


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched init`."""
    parser.add_argument("folder", nargs="?", default=".", metavar="DIR", help=f"where {NAME} is written (default: here)")


def execute(args: Any) -> int:
    """Write the pipeline; what is there already is left as it is."""
    folder(args.folder, "DIR")
    path = os.path.join(args.folder, NAME)
    try:
        os.makedirs(args.folder, exist_ok=True)
        with open(path, "x", encoding="utf-8") as stream:
            stream.write(PIPELINE)
    except FileExistsError as error:
        raise CommandLineError(f"{error.filename or path} is there already; it is left as it is: name another folder, or move it away") from error
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror or error}") from error
    write(f"{path} written; next: hetsched run {path}")
    return 0
