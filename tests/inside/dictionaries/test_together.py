"""Two processes train the dictionary that one process trains on the same batches, and harvest one store."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from fairlead.activations import ActivationStore
from fairlead.dictionaries import DictionaryConfig, DictionarySpec, load_dictionary, train_dictionaries
from fairlead.models import load_model

SITES = ["layers.0.resid_post", "layers.1.resid_post"]
CONFIG = DictionaryConfig(
    d_dict=64,
    k=4,
    num_tokens=3000,
    batch_tokens=60,
    buffer_tokens=130,
    passes=2,
    checkpoint_every=20,
    lr=1e-3,
)
WANTED = [
    ("plain", SITES[0], {}),
    ("low", SITES[0], {"precision": "bfloat16"}),
    ("nested", SITES[1], {"kind": "matryoshka"}),
]
SCRIPT = """
import json, sys, os
import torch
from fairlead.activations import ActivationStore
from fairlead.core.processes import join, rank
from fairlead.data import Encoded, Row
from fairlead.dictionaries import DictionaryConfig, DictionarySpec, train_dictionaries
from fairlead.dictionaries.trainer import Trainer
from fairlead.models import load_model
folder, config, wanted, sites, ids = sys.argv[1], *(json.loads(word) for word in sys.argv[2:])
torch.set_num_threads(1)
join()
model = load_model(folder + "/model", dtype="float32", device="cpu")
rows = [Encoded(row, [True] * len(row), i, Row(text="x")) for i, row in enumerate(ids)]
base = DictionaryConfig.model_validate(config)
specs = [DictionarySpec(name, site, base.model_copy(update=more)) for name, site, more in wanted]
real = Trainer.step

def interrupted(self, batch):
    if self.done == 33:
        raise KeyboardInterrupt
    real(self, batch)

Trainer.step = interrupted
try:
    train_dictionaries(model, rows, specs, out=folder + "/two", together=True)
except KeyboardInterrupt:
    pass
Trainer.step = real
found = train_dictionaries(model, rows, specs, out=folder + "/two", together=True)
small = base.model_copy(update={"batch_tokens": 3, "num_tokens": 150})
train_dictionaries(model, rows, [DictionarySpec("few", sites[0], small)], out=folder + "/two", together=True)
store = ActivationStore.harvest(model, rows, sites, folder + "/stores", shard_tokens=60, together=True)
print(json.dumps({"rank": rank(), "sha": {name: d.sha256 for name, d in found.items()}, "store": str(store.folder)}), flush=True)
"""


@pytest.mark.slow
def test_two_processes_train_what_one_trains_and_harvest_one_store(model, rows, tmp_path):
    model.hf.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ids = [list(row.input_ids) for row in rows]
    words = [str(tmp_path), CONFIG.model_dump_json(), *(json.dumps(value) for value in (WANTED, SITES, ids))]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
    ]
    settings = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launch, *words], capture_output=True, text=True, timeout=150, env=settings)
    assert done.returncode == 0, done.stderr[-4000:]
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted(each["rank"] for each in said) == [0, 1] and said[0]["sha"] == said[1]["sha"]

    alone = load_model(str(tmp_path / "model"), dtype="float32", device="cpu")
    specs = [DictionarySpec(name, site, CONFIG.model_copy(update=more)) for name, site, more in WANTED]
    one = train_dictionaries(alone, rows, specs)
    few = CONFIG.model_copy(
        update={"batch_tokens": 3, "num_tokens": 150}
    )  # often one process has none of them
    one |= train_dictionaries(alone, rows, [DictionarySpec("few", SITES[0], few)])
    for name, dictionary in one.items():
        two = load_dictionary(tmp_path / "two" / name)
        for part, value in dictionary.weights.items():
            gap = float((two.weights[part] - value).abs().max())
            assert gap < 1e-5, f"{name}: {part} differs by {gap:.2g}"
        for measure, value in dictionary.metrics.items():
            assert two.metrics[measure] == pytest.approx(value, abs=1e-5), f"{name}: {measure}"
        assert two.config["identity"] == dictionary.config["identity"]
    store, again = (
        ActivationStore(said[0]["store"]),
        ActivationStore.harvest(alone, rows, SITES, tmp_path / "again", shard_tokens=60),
    )
    for two, whole in zip(store.iter_tokens(), again.iter_tokens(), strict=True):
        assert torch.equal(two.input_ids, whole.input_ids)
        torch.testing.assert_close(two.acts, whole.acts)
