import torch

from builders import MODELS
from qskd.models.fingerprints import weights_fingerprint


def test_a_fingerprint_changes_with_any_weight_and_with_nothing_else():
    model = MODELS["rt_detr"]()
    before = weights_fingerprint(model)

    assert weights_fingerprint(model.train()) == before
    model.model.enc_score_head.bias.data[0] += 1e-6
    assert weights_fingerprint(model) != before


def test_a_fingerprint_reads_half_precision_and_scalars():
    norm = torch.nn.BatchNorm2d(2).to(torch.bfloat16)

    assert len(weights_fingerprint(norm)) == 64
