"""A probe fitted from a store of its texts is the one fitted by running the model."""

from __future__ import annotations

import pytest
import torch

from fairlead.activations import ActivationStore
from fairlead.core.errors import DataError
from fairlead.data import load_data
from fairlead.probes import SpanProbeConfig
from fairlead.probes.labelled import save_claims
from fairlead.probes.reading import make_reading
from fairlead.studies.probes import fit_probes


def test_a_probe_from_a_store_is_the_probe_from_the_model(pocket, answers, tmp_path, monkeypatch):
    data = save_claims(answers, tmp_path / "claims.jsonl")
    config = SpanProbeConfig.make(sites=("layers.2.resid_post",))
    direct = fit_probes(pocket, data, out=tmp_path / "direct", config=config)
    sites = make_reading(pocket, config.sites, confidence=True).sites
    store = ActivationStore.harvest(pocket, load_data(data), sites, tmp_path / "stores")
    other = ActivationStore.harvest(pocket, load_data(data), config.sites, tmp_path / "stores")

    import fairlead.studies.probes as study

    monkeypatch.setattr(study, "_score_some", lambda *_: [])
    with pytest.raises(DataError, match="holds none of the texts"):
        fit_probes(pocket, data, out=tmp_path / "other", config=config, store=other.folder)
    real = study.harvest

    def counted(reader, examples, reading):
        found = real(reader, examples, reading)
        assert reader.num_run == 0 and reader.num_read == len(examples), "the model is not run"
        return found

    monkeypatch.setattr(study, "harvest", counted)
    stored = fit_probes(pocket, data, out=tmp_path / "stored", config=config, store=store.folder)
    assert stored.records["linear"]["auroc"] == pytest.approx(direct.records["linear"]["auroc"], abs=1e-3)
    one, two = direct.probe.head.state_dict(), stored.probe.head.state_dict()
    assert one.keys() == two.keys() and one
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-3, rtol=1e-2)
