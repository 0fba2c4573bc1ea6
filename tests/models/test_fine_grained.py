import pytest
import torch

from builders import MODELS, batch_for
from qskd.errors import ConfigError, DataError
from qskd.models.adapter import MatchCosts, Need
from qskd.models.families import adapter_class
from qskd.models.families.fine_grained import FineGrainedAdapter

BOTH = pytest.mark.parametrize("family", ["d_fine", "deimv2"])


def adapter_of(family: str, **overrides: object) -> FineGrainedAdapter:
    torch.manual_seed(0)
    return adapter_class(family)(MODELS[family](**overrides))


@BOTH
def test_every_layer_speaks_in_evaluation_and_the_first_entry_of_training_is_left_out(family: str) -> None:
    adapter, batch = adapter_of(family), batch_for(family)
    decoder = adapter.model.model.decoder
    with torch.no_grad():
        view = adapter.read(batch).view
        assert not decoder.training
        decoder.training = True
        output = adapter.model(pixel_values=batch.pixels)
    assert output.intermediate_logits.shape[1] == 1 + view.num_layers
    torch.testing.assert_close(view.logits.transpose(0, 1), output.intermediate_logits[:, 1:])
    assert not torch.allclose(view.logits[0], view.logits[1])
    assert not torch.allclose(view.boxes[0], view.boxes[1])


@BOTH
def test_an_early_exit_is_refused_when_the_adapter_is_made(family: str) -> None:
    model = MODELS[family]()
    model.config.eval_idx = 2
    adapter_class(family)(model)
    model.config.eval_idx = 0
    with pytest.raises(ConfigError, match=r"eval_idx=0.*Set eval_idx to -1"):
        adapter_class(family)(model)


@BOTH
def test_denoising_queries_stay_out_of_the_view(family: str) -> None:
    adapter = adapter_of(family)
    adapter.model.train()
    reading = adapter.read(batch_for(family, (3, 1)), with_loss=True, capture_attention=True)
    assert reading.view.logits.shape == (3, 2, 10, 5)
    assert reading.own_loss is not None
    assert any("_dn_" in name for name in reading.own_loss.parts)
    assert {"loss_fgl_aux_0", "loss_ddf_aux_0"} <= reading.own_loss.parts.keys()


def test_own_loss_follows_auxiliary_loss_switched_off() -> None:
    own = adapter_of("d_fine", auxiliary_loss=False).read(batch_for("d_fine", (2, 1)), with_loss=True).own_loss
    assert own is not None
    assert own.parts.keys() == {"loss_vfl", "loss_bbox", "loss_giou"}


def test_matching_aware_loss_is_deimv2s() -> None:
    own = adapter_of("deimv2").read(batch_for("deimv2", (2, 1)), with_loss=True).own_loss
    assert own is not None
    assert "loss_mal" in own.parts
    assert "loss_vfl" not in own.parts


@BOTH
def test_sizes_and_costs_come_from_the_configuration(family: str) -> None:
    adapter = adapter_of(family, matcher_class_cost=3.0)
    assert adapter.match_costs == MatchCosts("focal", 3.0, 5.0, 2.0, alpha=0.25, gamma=2.0)
    assert adapter.size_multiple == 32
    assert adapter.provides == set(Need)
    with pytest.raises(DataError, match=f"{family} was given images of 64x64 pixels.*anchor_image_size"):
        adapter_of(family, anchor_image_size=[96, 96]).read(batch_for("rf_detr"))


def test_the_smallest_deimv2_has_two_levels() -> None:
    adapter = adapter_class("deimv2")(MODELS["deimv2-lite"]())
    view = adapter.read(batch_for("deimv2-lite")).view
    assert view.strides == adapter.strides == (16, 32)
    assert [tuple(level.shape[1:]) for level in view.memory] == [(16, 4, 6), (16, 2, 3)]
