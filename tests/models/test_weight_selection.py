"""Students that begin with evenly spaced channels of their teacher."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import DeformableDetrConfig

from builders import FAMILY_OF, MODELS, batch_for
from qskd.errors import ConfigError
from qskd.models.channels import evenly_spaced, kept_together
from qskd.models.deriving import _missing_maps, derive_student, select_weights
from qskd.models.families import adapter_class
from qskd.models.inheriting import inherit_weights
from qskd.models.initialising import backbone_of
from qskd.models.lineage import NOWHERE, Lineage
from qskd.models.loading import load_model, new_model
from qskd.models.shaping import StudentShape
from qskd.runs.options import PairOptions
from qskd.runs.starting import make_student

ROOT = Path(__file__).resolve().parents[2]
CONFIGS, ASSETS = ROOT / "examples" / "configs", ROOT / "src" / "qskd" / "assets"
NAMES = ["cat", "dog", "hen", "emu", "yak"]
NARROW = {"rt_detr", "rt_detr_v2", "d_fine", "deimv2", "lw_detr", "rf_detr"}  # the tiny ones have D = 16
POSITIONED = ["detr", "conditional_detr", "dab-detr", "deformable_detr", "table-transformer"]  # sine by cosine
SELECTS = Lineage((0,), (0, 1), 2, (), 0)


class Joined(nn.Module):
    """Two maps side by side go into one layer, as in the necks of detectors."""

    def __init__(self, width):
        super().__init__()
        self.left, self.right = nn.Linear(3, width, bias=False), nn.Linear(3, width, bias=False)
        self.both = nn.Linear(2 * width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("shape", torch.full((width,), 1.0 / width))

    def forward(self, values):
        return self.norm(self.both(torch.cat([self.left(values), self.right(values)], -1)))


def test_a_wide_model_whose_odd_channels_are_dead_computes_what_the_narrow_one_taken_from_it_does():
    torch.manual_seed(0)
    teacher, student = Joined(8).eval(), Joined(4).eval()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with torch.no_grad():
        teacher.left.weight[1::2] = teacher.right.weight[1::2] = 0.0
        for tensor in (teacher.norm.running_mean, teacher.norm.running_var, teacher.norm.weight):
            tensor += torch.rand(8)
        values = torch.randn(5, 3)
        inherit_weights(student, teacher, SELECTS)
        torch.testing.assert_close(student(values), teacher(values)[:, ::2])
    assert torch.equal(student.shape, before["shape"])


def block_of(name, inputs, out, *parts):
    parts = {part: nn.Identity() for part in parts}
    layer = nn.ModuleDict({"conv": nn.Conv2d(inputs, out, 1, bias=False)})
    return nn.ModuleDict({"pan_block": nn.ModuleDict(parts | {name: layer})})


@pytest.mark.parametrize("name", ["conv4", "conv2"])
def test_four_maps_side_by_side_give_their_own_channels(name):
    """D-FINE's and DEIMv2's necks: halves of 2 x 4 channels shrink to 2 x 2, two maps of 6 channels to 2."""
    teacher, student, wider = (
        block_of(name, 2 * out + 2 * inner, out, "csp_rep1") for out, inner in ((4, 6), (2, 2), (2, 7))
    )
    before = wider["pan_block"][name]["conv"].weight.clone()
    for target in (student, wider):
        inherit_weights(target, teacher, SELECTS)
    theirs = teacher["pan_block"][name]["conv"].weight
    columns = [0, 2, 4, 6, 8, 11, 14, 17]
    assert torch.equal(student["pan_block"][name]["conv"].weight, theirs[[0, 2]][:, columns])
    assert torch.equal(wider["pan_block"][name]["conv"].weight, before), "one of its maps is wider"


def test_two_maps_side_by_side_shrink_alike_whatever_goes_out():
    """RT-DETR's necks, where the teacher's inner width is its D and the student's half of it."""
    teacher, student = block_of("conv2", 8, 4, "bottlenecks"), block_of("conv2", 4, 1, "bottlenecks")
    inherit_weights(student, teacher, SELECTS)
    theirs = teacher["pan_block"]["conv2"]["conv"].weight
    assert torch.equal(student["pan_block"]["conv2"]["conv"].weight, theirs[[0]][:, [0, 2, 4, 6]])


class Deformable(nn.Module):
    """What reads maps at points around a box."""

    def __init__(self, width, heads, points):
        super().__init__()
        self.n_heads, self.n_levels, self.n_points, self.config = heads, len(points), points, None
        rows = heads * sum(points)
        self.sampling_offsets, self.attention_weights = nn.Linear(width, 2 * rows), nn.Linear(width, rows)


def test_points_come_from_the_head_and_the_map_that_they_are_of():
    """Three heads to two, width 6 to 4; the finest map falls away, the coarsest has more points than the teacher's."""
    teacher, student = Deformable(6, 3, [1, 2, 1]), Deformable(4, 2, [2, 3])
    with torch.no_grad():
        for layer in (teacher.sampling_offsets, teacher.attention_weights):
            layer.bias.copy_(torch.arange(len(layer.bias)))
            layer.weight.copy_(100 * layer.bias[:, None] + torch.arange(6))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}

    report = inherit_weights(student, teacher, replace(SELECTS, finer=1))

    # The teacher's head h has points 4h (finest), 4h + 1, 4h + 2 (middle), 4h + 3. Heads 0 and 2 hold the middles.
    weights = student.attention_weights
    assert weights.bias[[0, 1, 5, 6]].tolist() == [1, 2, 9, 10]
    assert weights.weight[5].tolist() == [900, 901, 903, 904], "columns 0, 1, 3 and 4 of six"
    offsets = student.sampling_offsets
    assert offsets.bias[[0, 1, 2, 3, 10, 11, 12, 13]].tolist() == [2, 3, 4, 5, 18, 19, 20, 21]
    own = [2, 3, 4, 7, 8, 9]  # of the coarsest map
    assert torch.equal(weights.weight[own], before["attention_weights.weight"][own])
    assert torch.equal(offsets.bias[4:10], before["sampling_offsets.bias"][4:10])
    assert report.inherited == 4 * 5 + 8 * 5


@pytest.mark.parametrize(("mine", "theirs", "factor"), [(0.5, 0.5, 1.0), (0.25, 0.5, 2.0), (1.0, 0.5, 0.5)])
def test_offsets_reach_as_far_where_they_are_scaled_otherwise(mine, theirs, factor):
    teacher, student = Deformable(4, 2, [2]), Deformable(4, 2, [2])
    teacher.offset_scale, student.offset_scale = theirs, mine
    inherit_weights(student, teacher, SELECTS)
    for name, scale in (("sampling_offsets", factor), ("attention_weights", 1.0)):
        one, other = student.get_submodule(name), teacher.get_submodule(name)
        torch.testing.assert_close(one.weight, scale * other.weight, rtol=0, atol=0)
        torch.testing.assert_close(one.bias, scale * other.bias, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("theirs", "mine", "expected"),
    [
        ({"with_box_refine": True}, {"with_box_refine": True}, [0, 2]),  # 2, 4 and 4 numbers; 2 and 4
        ({"with_box_refine": True, "two_stage": True}, {"with_box_refine": True, "two_stage": True}, [1, 2]),
        ({}, {}, [1, 2]),  # points throughout
        ({"with_box_refine": True}, {}, [0, 0]),
        ({}, {"with_box_refine": True}, [1, None]),
    ],
)
def test_offsets_from_points_and_from_boxes_are_not_mixed(theirs, mine, expected):
    teacher, student = deformable(3, **theirs), deformable(2, **mine)
    own, its = ([layer.encoder_attn for layer in one.model.model.decoder.layers] for one in (student, teacher))
    with torch.no_grad():
        for layer, attention in enumerate(its):
            attention.sampling_offsets.bias.fill_(100.0 + layer)
            attention.attention_weights.bias.fill_(100.0 + layer)
    before = [attention.sampling_offsets.bias.clone() for attention in own]

    select_weights(student, teacher, NAMES)

    for layer, origin in enumerate(expected):
        bias = own[layer].sampling_offsets.bias
        wanted = before[layer] if origin is None else torch.full_like(bias, 100.0 + origin)
        assert torch.equal(bias, wanted), layer
        assert torch.equal(own[layer].attention_weights.bias, its[layer + 1].attention_weights.bias)


def test_kernels_of_another_size_and_narrower_sources_give_nothing():
    source = nn.ModuleDict({"a": nn.Conv2d(4, 8, 3), "b": nn.Linear(4, 2)})
    target = nn.ModuleDict({"a": nn.Conv2d(2, 4, 1), "b": nn.Linear(2, 4)})
    before = [parameter.clone() for parameter in target.parameters()]
    inherit_weights(target, source, SELECTS)
    assert all(torch.equal(one, other) for one, other in zip(target.parameters(), before, strict=True))


def test_a_student_without_the_finest_map_begins_with_what_sees_the_same_maps():
    torch.manual_seed(0)
    teacher = new_model(CONFIGS / "d_fine_small.json", NAMES)
    student = new_model(CONFIGS / "d_fine_nano_half.json", ["yak", "fox", "cat"])
    fresh = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}

    report = select_weights(student, teacher, ["yak", "fox", "cat"])

    own, theirs = student.model.state_dict(), teacher.model.state_dict()
    for mine, origin in {
        "model.encoder_input_proj.0.0": "model.encoder_input_proj.1.0",
        "model.encoder_input_proj.1.0": "model.encoder_input_proj.2.0",
        "model.encoder.downsample_convs.0.conv1.conv": "model.encoder.downsample_convs.1.conv1.conv",
        "model.encoder.lateral_convs.0.conv": "model.encoder.lateral_convs.0.conv",
    }.items():
        assert torch.equal(own[f"{mine}.weight"], theirs[f"{origin}.weight"][::2, ::2]), mine
    head, teachers = own["class_embed.2.weight"], theirs["class_embed.2.weight"]
    assert torch.equal(head[[0, 2]], teachers[[4, 0], ::2])
    assert torch.equal(head[1], fresh["class_embed.2.weight"][1]), "the teacher knows no fox"
    for name in own:
        if name.endswith(("num_points_scale", "reg_scale", ".up")):
            assert torch.equal(own[name], fresh[name]), name
        if name.endswith("sampling_offsets.bias"):  # by head, map, point and axis; [3, 6, 3] points to [6, 6]
            mine, its = own[name].view(4, 12, 2), theirs[name].view(8, 12, 2)
            assert torch.equal(mine[:, :6], its[1::2, 3:9]), name
            assert torch.equal(mine[:, 6:], fresh[name].view(4, 12, 2)[:, 6:]), name
    assert 0.5 < report.inherited / report.total < 1
    assert "fox" in report.as_table()


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ((16, 32), (8, 16, 32), (1, 0)),
        ((8, 16), (8, 16, 32), (0, 1)),
        ((8, 16, 32), (8, 16, 32), (0, 0)),
        ((16, 32, 64), (8, 16, 32), (NOWHERE, NOWHERE)),
        ((4,), (8, 16), (NOWHERE, NOWHERE)),
    ],
)
def test_maps_are_found_by_their_strides(mine, theirs, expected):
    assert _missing_maps(mine, theirs) == expected


def test_modules_of_one_map_come_from_what_sees_the_same():
    lineage = Lineage((0,), (0,), 1, (), 0, finer=1, coarser=2)
    assert lineage.source_name("model.encoder.pan_blocks.0.conv1") == "model.encoder.pan_blocks.1.conv1"
    assert lineage.source_name("model.encoder.lateral_convs.1") == "model.encoder.lateral_convs.3"


def test_places_of_a_picture_are_not_mixed():
    source, target = nn.Module(), nn.Module()
    source.position_embeddings = nn.Parameter(torch.randn(1, 17, 8))
    target.position_embeddings = nn.Parameter(torch.zeros(1, 5, 4))
    inherit_weights(target, source, SELECTS)
    assert not target.position_embeddings.any()


@pytest.mark.parametrize(
    ("mine", "theirs", "rows"),
    [
        ((1, 6), (1, 4), [0, 1, 2, 3, -1, -1]),
        ((2, 4), (2, 6), [0, 1, 3, 4]),
        ((1, 2), (3, 9), [0, 1]),  # of LW-DETR's groups the first is the one that detects
        ((3, 6), (1, 2), [0, 1, -1, -1, -1, -1]),
    ],
)
def test_queries_come_from_the_first_ones_of_every_group_that_both_have(mine, theirs, rows):
    """Groups and all queries of each side."""
    source = nn.ModuleDict({"query_feat": nn.Embedding(theirs[1], 4)})
    target = nn.ModuleDict({"query_feat": nn.Embedding(mine[1], 4)})
    before = target["query_feat"].weight.clone()
    inherit_weights(target, source, replace(SELECTS, query_groups=(mine[0], theirs[0])))
    for query, row in enumerate(rows):
        expected = before[query] if row < 0 else source["query_feat"].weight[row]
        assert torch.equal(target["query_feat"].weight[query], expected), query


def deformable(layers, **options):
    config = DeformableDetrConfig.from_pretrained(CONFIGS / "deformable_detr_tiny.json")
    config.update({"decoder_layers": layers, "with_box_refine": False, **options})
    torch.manual_seed(0)
    return new_model(config, NAMES)


REFINES = {"with_box_refine": True}
TWO_STAGES = {**REFINES, "two_stage": True, "two_stage_num_proposals": 20, "num_queries": 20}


@pytest.mark.parametrize(
    ("theirs", "mine", "expected"),
    [
        (REFINES, REFINES, [0, 2]),  # the first says the whole box, the others how it changes
        (REFINES, {}, [0, 0]),
        ({}, REFINES, [0, None]),
        ({}, {}, [0, 0]),  # one head
        (TWO_STAGES, TWO_STAGES, [1, 2, 3]),  # the last makes proposals
        (REFINES, TWO_STAGES, [1, 2, None]),
    ],
)
def test_heads_that_say_boxes_and_changes_of_boxes_are_not_mixed(theirs, mine, expected):
    teacher, student = deformable(3, **theirs), deformable(2, **mine)
    own, its = student.model.bbox_embed, teacher.model.bbox_embed
    with torch.no_grad():
        for layer, head in reversed(list(enumerate(its))):  # one that is shared keeps the first number
            head.layers[-1].bias.fill_(100.0 + layer)
    before = [head.layers[-1].bias.clone() for head in own]

    select_weights(student, teacher, NAMES)

    for layer, origin in enumerate(expected):
        bias = own[layer].layers[-1].bias
        assert torch.equal(bias, before[layer] if origin is None else torch.full_like(bias, 100.0 + origin)), layer


def test_places_among_the_maps_come_from_the_maps_of_the_same_stride():
    torch.manual_seed(0)
    teacher = new_model(MODELS["deformable_detr"]().config, NAMES)
    config = MODELS["deformable_detr"]().config
    config.update({"num_feature_levels": 3})
    student = new_model(config, NAMES)
    select_weights(student, teacher, NAMES)
    assert len(teacher.strides) == len(student.strides) + 1
    assert torch.equal(student.model.model.level_embed, teacher.model.model.level_embed[:3])


@pytest.mark.parametrize(("theirs", "mine", "places"), [([1, 2], [2], [1]), ([2], [1, 2], [None, 0])])
def test_attention_within_a_map_comes_from_the_same_map(theirs, mine, places):
    def built(maps, seed):
        config = MODELS["d_fine"]().config
        config.update({"encode_proj_layers": maps})
        torch.manual_seed(seed)
        return new_model(config, NAMES)

    teacher, student = built(theirs, 0), built(mine, 1)
    weights = "model.encoder.aifi.{}.layers.0.mlp.layers.0.weight".format
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    select_weights(student, teacher, NAMES)
    own, its = student.model.state_dict(), teacher.model.state_dict()
    for block, place in enumerate(places):
        expected = before[weights(block)] if place is None else its[weights(place)]
        assert torch.equal(own[weights(block)], expected), block


@pytest.mark.parametrize("change", [{}, {"max_num_bins": 16}, {"reg_scale": 8.0}, {"up": 0.25}])
def test_bins_of_distances_are_handed_down_where_they_mean_the_same(change):
    def built(seed, **options):
        config = MODELS["d_fine"]().config
        config.update({"max_num_bins": 32, **options})
        torch.manual_seed(seed)
        return new_model(config, NAMES)

    teacher, student = built(0), built(1, **change)
    with torch.no_grad():
        for head in teacher.model.model.decoder.bbox_embed:
            head.layers[-1].bias.fill_(7.0)
    select_weights(student, teacher, NAMES)
    for mine, its in zip(student.model.model.decoder.bbox_embed, teacher.model.model.decoder.bbox_embed, strict=True):
        assert torch.equal(mine.layers[0].weight, its.layers[0].weight)
        assert bool((mine.layers[-1].bias == 7.0).all()) == (not change)


class Rotated(nn.Module):
    """An attention of a backbone whose heads are turned by position."""

    def __init__(self, heads, width):
        super().__init__()
        self.num_heads = heads
        for part in "qkvo":
            setattr(self, f"{part}_proj", nn.Linear(heads * width, heads * width))


def test_columns_that_are_heads_are_not_taken_in_pairs():
    """Of a Swin, in a family whose channels are."""

    def table(heads):
        module = nn.Module()
        module.relative_position_bias_table = nn.Parameter(torch.randn(9, heads))
        return nn.ModuleDict({"backbone": module})

    student, teacher = table(4), table(8)
    inherit_weights(student, teacher, replace(SELECTS, together=2))
    tables = [one["backbone"].relative_position_bias_table for one in (student, teacher)]
    assert torch.equal(tables[0], tables[1][:, [0, 2, 4, 6]])


@pytest.mark.parametrize(
    ("mine", "theirs", "inner"),
    [((1, 4), (2, 4), [0, 1, 2, 3]), ((2, 2), (2, 4), [0, 2, 4, 6]), ((1, 2), (3, 4), [0, 2]), ((2, 4), (4, 2), None)],
    ids=["heads", "width", "both", "wider heads"],
)
def test_heads_of_a_turned_attention_stay_whole(mine, theirs, inner):
    """Heads and the width of each."""

    def around(attention):
        return nn.ModuleDict({"backbone": nn.ModuleDict({"attention": attention})})

    student, teacher = Rotated(*mine), Rotated(*theirs)
    before = student.q_proj.weight.clone()
    inherit_weights(around(student), around(teacher), SELECTS)
    if inner is None:
        assert torch.equal(student.q_proj.weight, before), "its channels are turned by other angles"
        return
    outer = [channel * theirs[0] * theirs[1] // (mine[0] * mine[1]) for channel in range(mine[0] * mine[1])]
    for part in ("q_proj", "k_proj", "v_proj"):
        own, its = getattr(student, part), getattr(teacher, part)
        assert torch.equal(own.weight, its.weight[inner][:, outer])
        assert torch.equal(own.bias, its.bias[inner])
    assert torch.equal(student.o_proj.weight, teacher.o_proj.weight[outer][:, inner])
    assert torch.equal(student.o_proj.bias, teacher.o_proj.bias[outer])


def test_a_backbone_of_timms_is_the_teachers():
    teacher = new_model(CONFIGS / "d_fine_lite.json", NAMES)
    student = new_model(CONFIGS / "d_fine_lite_nano.json", NAMES)
    select_weights(student, teacher, NAMES)
    theirs = backbone_of(teacher.model).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in backbone_of(student.model).state_dict().items())


@pytest.mark.parametrize("family", MODELS)
def test_narrower_derived_students_of_every_family_take_over_more(family):
    model = MODELS[family](**({} if FAMILY_OF[family] in NARROW else {"d_model": 64}))
    model.config.id2label = dict(enumerate(NAMES))
    teacher = adapter_class(model.config.model_type)(model)
    hidden = 8 if FAMILY_OF[family] in NARROW else 32
    try:
        shape = StudentShape(hidden_size=hidden, decoder_layers=2)
        student, report = derive_student(teacher, shape, class_names=NAMES)
    except ConfigError:
        pytest.skip("no narrower width fits the heads")
    assert report.inherited > 0.8 * report.total
    view = student.read(batch_for(family, (2, 1))).view
    (view.logits.sum() + view.boxes.sum()).backward()
    assert torch.isfinite(view.boxes).all()


def positions_of(family, width):
    """Every encoded position that a model of D = width computes for the same images, channels last."""
    options: dict[str, object] = {"d_model": width}
    if family == "rt_detr":
        options |= {"encoder_hidden_dim": width, "decoder_in_channels": [width] * 3}
    adapter = adapter_class(FAMILY_OF[family])(MODELS[family](**options))
    found = []
    for module in adapter.model.modules():
        if type(module).__name__.endswith("SinePositionEmbedding"):
            module.register_forward_hook(lambda _, __, out: found.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        adapter.model.eval()
        adapter.read(batch_for(family, (2, 1)))
    return [one.movedim(list(one.shape).index(width), -1) for one in found]


@pytest.mark.parametrize("family", [*POSITIONED, "rt_detr"])
def test_a_narrower_students_positions_are_those_of_its_channels_in_the_teacher(family):
    places = evenly_spaced(32, 64, kept_together(FAMILY_OF[family]))
    wide, narrow = positions_of(family, 64), positions_of(family, 32)
    assert wide
    assert len(wide) == len(narrow)
    for theirs, mine in zip(wide, narrow, strict=True):
        torch.testing.assert_close(mine, theirs[..., places])


@pytest.fixture(scope="module")
def teacher(tiny_folders):
    return load_model(tiny_folders["rt_detr_teacher"])


def test_the_command_begins_with_selected_weights_and_says_so():
    teacher = load_model(ASSETS / "demo_teacher")
    names = [teacher.id2label[number] for number in sorted(teacher.id2label)]
    options = PairOptions(student=str(ASSETS / "demo_student.json"))
    student, notes, began = make_student(options, teacher, names, 0)
    own, theirs = student.model.state_dict(), teacher.model.state_dict()
    for name in ("model.encoder_input_proj.0.0.weight", "model.encoder.lateral_convs.0.conv.weight"):
        mine, other = own[name], theirs[name]
        rows, columns = (
            [place * large // small for place in range(small)]
            for small, large in zip(mine.shape[:2], other.shape[:2], strict=True)
        )
        assert mine.numel() < other.numel(), "a narrower layer"
        assert torch.equal(mine, other[rows][:, columns]), name
    assert notes[0] == "the student, begun with the teacher's weights"
    assert began["weights"].startswith("weights of teacher ")


def test_students_with_weights_of_their_own_keep_them_and_other_families_have_none_to_take(teacher, tiny_folders):
    for source, began in (("rt_detr_student", "weights "), ("detr_student/config.json", "random weights")):
        name, *rest = source.split("/")
        path = str(tiny_folders[name].joinpath(*rest))
        _, notes, start = make_student(PairOptions(student=path), teacher, NAMES, 0)
        assert notes == []
        assert start["weights"].startswith(began)
        assert "teacher" not in start["weights"]


def test_the_weights_of_a_backbone_of_its_own_stay(teacher, tiny_folders):
    config, own = tiny_folders["rt_detr_student"] / "config.json", tiny_folders["rt_detr_student"]
    options = PairOptions(student=str(config), student_backbone_weights=str(own))
    student, _, start = make_student(options, teacher, NAMES, 0)
    expected = backbone_of(load_model(own).model).state_dict()
    found = backbone_of(student.model).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in found if "num_batches" not in name)
    assert start["weights"].endswith(f"and backbone {own}")
    assert "of teacher" in start["weights"]


def test_images_are_normalised_as_for_the_backbone_that_was_taken_over(teacher, tiny_folders):
    norm = replace(teacher.pixel_norm, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    other = type(teacher)(teacher.model, pixel_norm=norm, box_frame="content")
    config, own = tiny_folders["rt_detr_student"] / "config.json", tiny_folders["rt_detr_student"]
    student, _, _ = make_student(PairOptions(student=str(config)), other, NAMES, 0)
    assert student.pixel_norm == norm
    weights = PairOptions(student=str(config), student_backbone_weights=str(own))
    assert make_student(weights, other, NAMES, 0)[0].pixel_norm == load_model(own).pixel_norm


def test_a_configuration_begins_with_random_weights_where_that_is_asked_for(teacher, tiny_folders):
    path = str(tiny_folders["rt_detr_student"] / "config.json")
    _, notes, start = make_student(PairOptions(student=path, inherit=False), teacher, NAMES, 0)
    assert (notes, start["weights"]) == ([], "random weights")


def test_a_cache_alone_has_no_weights(tiny_folders):
    path = str(tiny_folders["rt_detr_student"] / "config.json")
    with pytest.raises(ConfigError, match="which no cache holds"):
        make_student(PairOptions(student=path), None, NAMES, 0, cached_family="rt_detr")
    for options, family in (({"inherit": False}, "rt_detr"), ({}, "detr")):
        start = make_student(PairOptions(student=path, **options), None, NAMES, 0, cached_family=family)[2]
        assert start["weights"] == "random weights"
