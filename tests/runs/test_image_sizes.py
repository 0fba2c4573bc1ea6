import pytest

from builders import FAMILY_OF, MODELS
from qskd.data.transforms import ImageSize
from qskd.errors import ConfigError
from qskd.models.adapter import DetrAdapter
from qskd.models.families import adapter_class
from qskd.models.loading import load_model
from qskd.runs.image_sizes import choose_size
from qskd.runs.options import DataOptions


def adapters_of(*names: str, **overrides: object) -> list[DetrAdapter]:
    return [adapter_class(FAMILY_OF[name])(MODELS[name](**overrides)) for name in names]


def test_a_size_that_windows_do_not_divide_is_refused_with_one_that_they_do() -> None:
    with pytest.raises(ConfigError, match=r"100 is not a multiple of 32, which lw_detr needs\. Try 96"):
        choose_size(DataOptions(data="", image_size=100), adapters_of("lw_detr", "detr"), [None, None])


def test_a_size_has_to_suit_both_models() -> None:
    pair = adapters_of("rf_detr", "d_fine")
    pair[0].model.config.backbone_config.patch_size = 14  # as RF-DETR base; windows of 28 pixels
    with pytest.raises(ConfigError, match=r"640 is not a multiple of 224, which rf_detr, d_fine needs\. Try 672"):
        choose_size(DataOptions(data="", image_size=640), pair, [None, None])
    assert choose_size(DataOptions(data=""), pair, [None, None]) == ImageSize(square=672)


@pytest.mark.parametrize("family", ["d_fine", "deimv2", "lw_detr", "rf_detr"])
def test_families_without_a_padding_mask_get_squares(family: str) -> None:
    assert choose_size(DataOptions(data=""), adapters_of(family), [None]) == ImageSize(square=640)
    with pytest.raises(ConfigError, match="reads no padding mask"):
        choose_size(DataOptions(data="", image_size=480, max_image_size=640), adapters_of(family), [None])


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_size_that_anchors_were_made_for_is_the_only_one(who):
    (fixed,) = adapters_of("rt_detr")
    fixed.model.config.anchor_image_size = [96, 96]
    (other,) = adapters_of("detr")
    pair = [fixed, other] if who == "student" else [other, fixed]
    with pytest.raises(ConfigError, match=r"has anchor_image_size \[96, 96\] in its config.json"):
        choose_size(DataOptions(data="", image_size=128), pair, [None, None])
    assert choose_size(DataOptions(data="", image_size=96), pair, [None, None]) == ImageSize(square=96)


def test_a_pair_with_one_family_of_squares_is_told_of_the_teachers_own_size():
    with pytest.raises(ConfigError, match="or the teacher its own size with --teacher_image_size"):
        choose_size(
            DataOptions(data="", image_size=64, max_image_size=96), adapters_of("detr", "rt_detr"), [None, None]
        )


def test_a_projector_that_makes_no_map_is_refused():
    (adapter,) = adapters_of("lw_detr")
    adapter.model.config.projector_scale_factors = []
    with pytest.raises(ConfigError, match="has no projector_scale_factors"):
        choose_size(DataOptions(data="", image_size=64), [adapter], [None])


@pytest.mark.parametrize(
    ("size", "longest", "models", "wanted"),
    [
        (96, None, ("rt_detr_student",), ImageSize(square=96)),
        (None, None, ("rt_detr_student",), ImageSize(square=64)),  # its processor's
        (100, None, ("detr_student",), ImageSize(square=100)),  # reads padding: any size
        (80, 120, ("detr_student", "detr_teacher"), ImageSize(shortest_edge=80, longest_edge=120)),
    ],
)
def test_the_image_size_is_what_was_asked_for_or_the_models_own(tiny_folders, size, longest, models, wanted):
    folders = [str(tiny_folders[name]) for name in models]
    adapters = [load_model(folder) for folder in folders]
    options = DataOptions(image_size=size, max_image_size=longest)
    assert choose_size(options, adapters, folders) == wanted


def test_a_configuration_alone_has_no_size_of_its_own(tiny_folders):
    adapter = load_model(tiny_folders["rt_detr_student"])
    for source in ("model.json", "a/b/c/model.json", None):
        assert choose_size(DataOptions(), [adapter], [source]) == ImageSize(square=640)


@pytest.mark.parametrize(
    ("size", "longest", "told"),
    [
        (70, None, "--image_size 70 is not a multiple of 32, which rt_detr needs. Try 64."),
        (10, None, "Try 32."),
        (64, 128, "--max_image_size keeps the aspect ratio and pads, but rt_detr reads no padding mask"),
        (None, 128, "--max_image_size is the longest edge; give the shortest with --image_size"),
        (0, None, "expected square"),
    ],
)
def test_a_size_that_a_model_cannot_take_is_refused(tiny_folders, size, longest, told):
    adapters = [load_model(tiny_folders[name]) for name in ("detr_teacher", "rt_detr_student")]
    with pytest.raises(ConfigError) as caught:
        choose_size(DataOptions(image_size=size, max_image_size=longest), adapters, [])
    assert told in str(caught.value)


@pytest.mark.parametrize("family", ["rt_detr", "deformable_detr-two-stage", "lw_detr"])
def test_more_queries_than_the_memory_has_cells_are_refused(family):
    (adapter,) = adapters_of(family)
    adapter.model.config.num_queries = adapter.model.config.two_stage_num_proposals = 10_000
    with pytest.raises(ConfigError, match=r"picks 10000 queries among the cells of its memory.*larger --image_size"):
        choose_size(DataOptions(image_size=64), [adapter], [None])


def test_queries_that_are_learnt_may_be_many():
    (adapter,) = adapters_of("detr", num_queries=200)
    assert choose_size(DataOptions(image_size=64), [adapter], [None]) == ImageSize(square=64)
