"""Operations equal hand counts, one multiply-add being two; latency is measured in eval mode."""

import json
import time

import pytest
import torch
from torch import nn

from builders import tiny_detr
from builders_deformable import tiny_deformable_detr, tiny_rt_detr
from qskd.data.batch import Batch, Targets
from qskd.evaluation.cost import (
    cost_of,
    count_operations,
    count_parameters,
    gflops,
    interleaved_latency_ms,
    latency_ms,
)
from qskd.models.families import adapter_class


def batch_of(images: int, height: int, width: int) -> Batch:
    nothing = Targets.from_lists([torch.zeros(0)] * images, [torch.zeros(0, 4)] * images)
    content = torch.tensor([[height, width]]).expand(images, -1)
    pixels = torch.rand(images, 3, height, width, generator=torch.Generator().manual_seed(0))
    return Batch(pixels, content, nothing, tuple(range(images)), ((height, width),) * images)


def adapter_of(model: nn.Module):
    return adapter_class(model.config.model_type)(model)


def operations_of_modules(model: nn.Module, run) -> int:
    """What the convolutions and linear layers that ``run`` calls compute, two for each multiply-add."""
    total = 0

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        each = weight[0].numel()  # multiply-adds for one output value
        total += 2 * output.numel() * each

    hooks = [
        module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return total


def test_a_convolution_and_a_linear_layer_count_two_for_each_multiply_add():
    convolution, linear = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(10, 4)
    # 8 x 16 x 12 output values of 3 x 3 x 3 products; 5 x 4 output values of 10 products.
    assert count_operations(lambda: convolution(torch.zeros(1, 3, 32, 24))) == 2 * 8 * 16 * 12 * 27
    assert count_operations(lambda: linear(torch.zeros(5, 10))) == 2 * 5 * 4 * 10


def test_attention_counts_both_of_its_matrix_products():
    # 7 queries and 11 keys of 2 heads x 16 channels.
    query, key = torch.zeros(1, 2, 7, 16), torch.zeros(1, 2, 11, 16)
    attend = nn.functional.scaled_dot_product_attention
    assert count_operations(lambda: attend(query, key, key)) == 2 * (2 * 7 * 11 * 16 * 2)


@pytest.mark.parametrize(("mode", "each"), [("bilinear", 8), ("nearest", 0)])
def test_sampling_counts_four_multiply_adds_for_each_value(mode, each):
    maps, grid = torch.zeros(2, 16, 5, 6), torch.zeros(2, 3, 4, 2)
    sample = nn.functional.grid_sample
    assert count_operations(lambda: sample(maps, grid, mode=mode, align_corners=False)) == 2 * 16 * 12 * each


def test_rt_detr_is_layers_plus_attention_plus_sampling():
    model = tiny_rt_detr().eval()
    config, batch, adapter = model.config, batch_of(1, 64, 96), adapter_of(model)
    counted = gflops(adapter, batch) * 1e9
    layers = operations_of_modules(model, lambda: adapter.read(batch))
    tokens = 2 * 3  # of stride 32
    encoder = config.encoder_layers * 4 * tokens**2 * config.encoder_hidden_dim
    decoder = config.decoder_layers * 4 * config.num_queries**2 * config.d_model
    points = config.num_feature_levels * config.decoder_n_points
    sampling = config.decoder_layers * config.num_queries * config.d_model * points * 8
    assert counted == pytest.approx(layers + encoder + decoder + sampling, rel=1e-3)


def test_deformable_detr_is_layers_plus_self_attention_plus_sampling_of_every_token():
    model = tiny_deformable_detr().eval()
    config, batch, adapter = model.config, batch_of(1, 128, 128), adapter_of(model)
    counted = gflops(adapter, batch) * 1e9
    layers = operations_of_modules(model, lambda: adapter.read(batch))
    tokens = 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2
    attention = config.decoder_layers * 4 * config.num_queries**2 * config.d_model
    values = (
        config.encoder_layers * tokens * config.encoder_n_points
        + config.decoder_layers * config.num_queries * config.decoder_n_points
    )
    sampling = values * config.num_feature_levels * config.d_model * 8
    assert counted == pytest.approx(layers + attention + sampling, rel=1e-6)


def test_operations_are_an_images_and_do_not_depend_on_mode_or_gradient():
    model = tiny_detr()
    adapter = adapter_of(model)
    one = gflops(adapter, batch_of(1, 64, 96))
    assert gflops(adapter_of(model.train()), batch_of(3, 64, 96)) == pytest.approx(one)
    assert gflops(adapter, batch_of(1, 128, 96)) > 1.8 * one


def test_parameters_count_frozen_and_shared_ones_once_and_no_buffers():
    shared = nn.Linear(3, 2)
    model = nn.Sequential(shared, nn.BatchNorm1d(2), nn.Sequential(shared))
    shared.weight.requires_grad_(False)
    assert count_parameters(model) == 3 * 2 + 2 + 2 * 2


def test_latency_is_the_median_and_a_slow_tenth_after_the_warm_up(monkeypatch):
    clock = iter([0.0, 0.010, 1.0, 1.030, 2.0, 2.020])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    calls = []
    median, p90 = latency_ms(calls.append, batch_of(1, 8, 8), repeats=3, warmup=2)
    assert len(calls) == 5
    assert (median, p90) == (pytest.approx(20.0), pytest.approx(28.0))


def test_measuring_leaves_modes_and_frozen_parameters_as_they_were():
    model = tiny_detr().train()
    model.model.backbone.eval()
    model.class_labels_classifier.weight.requires_grad_(False)
    before = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    seen = []
    model.model.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    cost = cost_of(adapter_of(model), batch_of(2, 64, 64), repeats=1, warmup=0)
    assert [module.training for module in model.modules()] == before
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert set(seen) == {(False, False)}
    assert cost.parameters == count_parameters(model)
    assert (cost.batch_size, cost.image_size, cost.device) == (2, (64, 64), "cpu")
    assert json.loads(json.dumps(cost.as_dict()))["gflops"] == cost.gflops > 0


def test_modes_come_back_even_when_the_model_fails():
    class Broken(nn.Module):
        def forward(self, batch: Batch) -> None:
            raise RuntimeError("broken")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        latency_ms(model, batch_of(1, 8, 8))
    assert model.training
    assert torch.is_grad_enabled()


def test_interleaved_models_are_timed_in_turn_each_round_by_another_first(monkeypatch):
    order, clock = [], iter(range(10_000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) / 1000)
    models = [adapter_of(tiny_rt_detr()), adapter_of(tiny_rt_detr())]
    for at, adapter in enumerate(models):
        monkeypatch.setattr(type(adapter), "read", lambda self, _: order.append(models.index(self)))
        adapter.model.train(at == 0)
    batch = batch_of(1, 64, 64)
    times = interleaved_latency_ms([(adapter, batch) for adapter in models], rounds=3, warmup=1)
    assert order == [0, 1, 0, 1, 1, 0, 0, 1]
    assert [len(one) for one in times] == [3, 3]
    assert times[0] == pytest.approx([1.0] * 3)  # the clock moves by 1 ms each time it is asked
    assert [adapter.model.training for adapter in models] == [True, False]


def test_interleaving_ends_when_its_time_is_over_but_not_before_five_rounds():
    adapter, batch = adapter_of(tiny_rt_detr()), batch_of(1, 64, 64)
    (times,) = interleaved_latency_ms([(adapter, batch)], rounds=50, warmup=0, most_seconds=0.0)
    assert len(times) == 5
