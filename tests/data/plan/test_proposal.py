"""What is proposed for hand-made fingerprints, and how patches follow the memory."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfocal.data.plan.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint, LesionFingerprint
from medfocal.data.plan.patch import MOST_BATCH, Budget, Means, plan_patch
from medfocal.data.plan.proposal import _is_ct, propose
from medfocal.errors import ConfigError

CPU = Means("cpu", 8, 4, Budget.STANDARD)


def lesion(num_voxels=20, volume_mm3=20.0, extent_mm=(3.0, 3.0, 3.0), contrast=(2.0,)):
    diameter_mm = (6 * volume_mm3 / math.pi) ** (1 / 3)
    return LesionFingerprint(num_voxels, volume_mm3, diameter_mm, extent_mm, contrast)


def channel(*, lowest=0.0, zero_share=0.5, is_integral=False, clipped_lesion_share=0.0):
    percentiles = tuple(float(n) for n in range(7))
    return ChannelFingerprint(percentiles, percentiles, lowest, 100.0, zero_share, is_integral, clipped_lesion_share)


def case(number, *, spacing_mm=(1.0, 1.0, 1.0), shape=(120, 100, 80), orientation="RAS", lesions=(), **changes):
    named = {
        "patient": f"p{number}",
        "split": "training",
        "body_shape": shape,
        "body_share": 0.5,
        "channels": (channel(),),
        "class_voxels": {1: sum(one.num_voxels for one in lesions)},
    }
    values = named | changes
    return CaseFingerprint(
        case=f"s{number}",
        shape=shape,
        spacing_mm=spacing_mm,
        orientation=orientation,
        lesions=tuple(lesions),
        **values,
    )


def fingerprint(cases, *, channels=("FLAIR",), labels=None, num_readers=0, regions=None):
    labels = {0: "background", 1: "lesion"} if labels is None else labels
    return Fingerprint(Path("dataset.json"), "hand-made", channels, labels, num_readers, tuple(cases), regions or {})


def of_spacings(*spacings_mm, volume_mm3=1000.0, **changes):
    return fingerprint(
        [
            case(n, spacing_mm=spacing, lesions=[lesion(volume_mm3=volume_mm3)], **changes)
            for n, spacing in enumerate(spacings_mm)
        ]
    )


def proposed(found, key, means=CPU):
    plan = propose(found, means)
    return plan.value(key), {proposal.key: proposal.reason for proposal in plan.proposals}[key]


def test_a_spacing_that_all_share_is_kept():
    assert proposed(of_spacings((0.5, 1, 3), (0.504, 1, 2.98)), "transforms.spacing_mm")[0] is None
    assert proposed(of_spacings((0.5, 1, 3), (0.504, 1, 2.98)), "transforms.spacing_mm")[1].startswith("all 2 cases")
    assert proposed(of_spacings((0.5, 1, 3)), "transforms.spacing_mm")[1].startswith("the only case")


def test_a_mix_of_spacings_gets_its_median():
    spacing, reason = proposed(of_spacings((0.8, 1, 1), (1, 1, 1.5), (2, 1.2, 2)), "transforms.spacing_mm")
    assert spacing == [1, 1, 1.5]
    assert "0.8 x 1 x 1 to 2 x 1.2 x 2 mm" in reason
    assert "12.4 mm across, allows it" in reason


def test_the_coarse_axis_of_anisotropic_data_is_at_the_10th_percentile():
    found = of_spacings(*[(0.5, 0.6, z) for z in (2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6)])
    spacing, reason = proposed(found, "transforms.spacing_mm")
    assert spacing == [0.5, 0.6, 3]
    assert "axis S is 10.0 times as coarse" in reason


def test_the_coarse_axis_is_never_made_finer_than_the_next():
    found = of_spacings(*[(1, 1, z) for z in (0.5, 0.5, 4, 4, 4)])
    assert proposed(found, "transforms.spacing_mm")[0] == [1, 1, 1]


def test_three_times_as_coarse_is_anisotropic_and_less_is_not():
    lower = [(1, 1, 1.5)] * 2
    assert proposed(of_spacings(*lower, *[(1, 1, 3.0)] * 5), "transforms.spacing_mm")[0] == [1, 1, 1.5]
    assert proposed(of_spacings(*lower, *[(1, 1, 2.9)] * 5), "transforms.spacing_mm")[0] == [1, 1, 2.9]


def test_small_lesions_ask_for_a_finer_spacing():
    """A ball of 2.4 mm across is to have two voxels of 1.2 mm."""
    volume = math.pi / 6 * 2.4**3
    found = of_spacings(*[(0.7, 1, 1)] * 3, *[(0.8, 2, 2)] * 4, volume_mm3=volume)
    spacing, reason = proposed(found, "transforms.spacing_mm")
    assert spacing == [0.8, 1.2, 1.2]
    assert "no more than 2.4 mm across" in reason


def test_one_voxel_lesions_ask_for_no_finer_spacing_than_the_finest_tenth_of_the_cases():
    found = of_spacings(*[(0.7, 1, 1)] * 3, *[(0.8, 2, 2)] * 4, volume_mm3=0.01)
    assert proposed(found, "transforms.spacing_mm")[0] == [0.7, 1, 1]


def test_a_dataset_without_lesions_gets_a_spacing_all_the_same():
    found = fingerprint([case(0, spacing_mm=(1, 1, 1)), case(1, spacing_mm=(1, 1, 2)), case(2, spacing_mm=(1, 1, 2))])
    assert proposed(found, "transforms.spacing_mm")[0] == [1, 1, 2]
    assert any(note.startswith("no lesion") for note in propose(found, CPU).notes)


def test_spacings_are_in_the_order_of_the_orientation_that_is_proposed():
    cases = [case(n, spacing_mm=(3, 0.5, 1), orientation="SLP", lesions=[lesion()]) for n in range(3)]
    cases += [case(n, spacing_mm=(0.52, 1, 3), orientation="RAS", lesions=[lesion()]) for n in range(3, 5)]
    plan = propose(fingerprint(cases), CPU)
    assert plan.value("transforms.orientation") == "RAS"
    assert plan.value("transforms.spacing_mm") == [0.5, 1, 3]
    reasons = {proposal.key: proposal.reason for proposal in plan.proposals}
    assert "3 SLP, 2 RAS" in reasons["transforms.orientation"]


CT = {"lowest": -1024.0, "is_integral": True, "zero_share": 0.0}


def of_channels(*channels, names=("FLAIR",)):
    return fingerprint([case(n, channels=channels, lesions=[lesion()]) for n in range(3)], channels=names)


@pytest.mark.parametrize(
    ("found", "intensity", "told"),
    [
        (of_channels(channel()), "zscore_nonzero", "no CT"),
        (of_channels(channel(**CT), names=("image",)), "percentile_zscore", "'image' is CT"),
        (of_channels(channel(), names=("ct",)), "percentile_zscore", "'ct' is CT"),
        (of_channels(channel(lowest=-300.0)), "zscore_nonzero", "no CT"),
        (of_channels(channel(), names=("PET (SUV)",)), "zscore_nonzero", "scale of SUV"),
        (of_channels(channel(**CT), channel(), names=("a", "b")), "percentile_zscore", "'a' is CT"),
        (of_channels(channel(**CT), channel(), names=("a", "b")), "percentile_zscore", "the other channels as well"),
        (
            of_channels(channel(**CT, clipped_lesion_share=0.4), names=("image",)),
            "percentile_zscore",
            "40% of a lesion's voxels",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_intensity_scheme_follows_the_modality(found, intensity, told):
    value, reason = proposed(found, "transforms.intensity")
    assert value == intensity
    assert told in reason


def test_lesions_that_clipping_spares_are_not_worth_a_word():
    assert "outside these" not in proposed(of_channels(channel(**CT)), "transforms.intensity")[1]


def test_masks_alone_are_planned_for_but_for_intensities():
    cases = [case(n, channels=(), body_share=None, lesions=[lesion(contrast=())]) for n in range(3)]
    plan = propose(fingerprint(cases, channels=()), CPU)
    keys = [proposal.key for proposal in plan.proposals]
    assert "transforms.intensity" not in keys
    assert "sampling.patch_size" in keys
    assert any("transforms.intensity is not proposed" in note for note in plan.notes)
    assert not any("SD" in note for note in plan.notes)


def test_lesions_that_are_everywhere_need_fewer_patches_and_no_weight():
    shape = (10, 10, 10)
    rare, common = (
        fingerprint([case(0, shape=shape, lesions=[lesion(num_voxels=n)])], num_readers=readers)
        for n, readers in ((49, 0), (50, 4))
    )
    for key, value in (("sampling.lesion_fraction", 0.5), ("loss.alpha", 0.75)):
        assert proposed(rare, key)[0] == value
    for key, value in (("sampling.lesion_fraction", 0.33), ("loss.alpha", 0.5)):
        assert proposed(common, key)[0] == value
    assert proposed(rare, "loss.gamma")[0] == proposed(common, "loss.gamma")[0] == 1
    assert "readers disagree" in proposed(common, "loss.gamma")[1]
    assert "readers disagree" not in proposed(rare, "loss.gamma")[1]
    assert proposed(rare, "trainer.prior_bias")[0] is True


def of_sizes(*num_voxels, spacing_mm=(0.5, 1, 3)):
    voxel = math.prod(spacing_mm)
    return fingerprint([case(0, spacing_mm=spacing_mm, lesions=[lesion(n, n * voxel) for n in num_voxels])])


@pytest.mark.parametrize(
    ("found", "least", "told"),
    [
        (of_sizes(3, 4, 5), 0.0, "0 of 3 lesions"),
        (of_sizes(1, 2, 3, 4, 5), 3.75, "the 2 below this volume"),
        (of_sizes(1, *[9] * 20), 0.0, "1 of 21 lesions"),
        (of_sizes(1, *[9] * 19), 3.75, "1 of 20 lesions"),
        (of_sizes(1, 1, 2, 7, 8), 0.0, "Are they lesions?"),
        (of_sizes(), 0.0, "0 of 0 lesions"),
    ],
    ids=["none", "two", "one of 21", "one of 20", "most", "no lesion"],
)
def test_specks_are_ignored_where_they_are_some_but_not_most(found, least, told):
    value, reason = proposed(found, "evaluate.min_volume_mm3")
    assert value == pytest.approx(least)
    assert told in reason


@pytest.mark.parametrize(("patients", "folds"), [(0, None), (1, None), (2, 2), (4, 4), (5, 5), (20, 5)])
def test_folds_are_by_patients_who_have_lesions(patients, folds):
    cases = [case(n, lesions=[lesion()], patient=f"p{n // 2}") for n in range(2 * patients)]
    plan = propose(fingerprint([*cases, case(99)]), CPU)
    assert plan.num_folds == folds
    assert any(note.startswith(f"{patients} patient") for note in plan.notes)


def test_folds_are_proposed_where_no_case_is_for_validation():
    cases = [case(n, lesions=[lesion()] * 3) for n in range(8)]
    plan = propose(fingerprint(cases), Means("cpu", 8, 4, Budget.QUICK))
    assert (plan.value("data.num_folds"), plan.value("fold")) == (5, 0)
    assert "8 patients have lesions" in plan.proposals[0].reason
    reasons = {proposal.key: proposal.reason for proposal in plan.proposals}
    assert "each of 19 training lesions" in reasons["trainer.max_epochs"], "a fifth of 24 validates"
    split = propose(fingerprint([*cases[:-1], case(8, split="validation", lesions=[lesion()])]), CPU)
    assert "data.num_folds" not in {proposal.key for proposal in split.proposals}
    assert plan.num_validation_windows == math.ceil(8 / 5 * split.num_validation_windows * _same_windows(plan, split))
    alone = propose(fingerprint(cases[:1]), CPU)
    assert not any(proposal.key.startswith("data.") for proposal in alone.proposals)
    assert alone.num_validation_windows == 0


def _same_windows(plan, other):
    """Windows of a case of 120 x 100 x 80 voxels in one plan for each in another."""
    counts = [
        math.prod(
            max(1, math.ceil(2 * n / size) - 1) for n, size in zip((120, 100, 80), p.patch.window_size, strict=True)
        )
        for p in (plan, other)
    ]
    return counts[0] / counts[1]


def test_the_cache_holds_half_precision_channels_and_a_byte_for_the_label():
    cases = [
        case(0, shape=(120, 100, 80), body_shape=(60, 50, 40), channels=(channel(), channel())),
        case(1, shape=(120, 100, 80), body_shape=(30, 20, 10), channels=(channel(), channel())),
    ]
    plan = propose(fingerprint(cases, channels=("a", "b")), CPU)
    assert plan.cache_gb == pytest.approx(2 * 120 * 100 * 80 * (2 * 2 + 1) / 1e9), "of whole volumes"


def test_the_cache_is_on_the_grid_that_is_proposed():
    """Of 12 slices 1 mm apart, 11 mm from the first to the last, 7 are left 2 mm apart."""
    cases = [
        case(n, spacing_mm=(1, 1, z), shape=(10, 9, 12), body_shape=(8, 8, 8)) for n, z in enumerate((1.0, 2.0, 2.0))
    ]
    assert propose(fingerprint(cases), CPU).cache_gb == pytest.approx(90 * (7 + 12 + 12) * 3 / 1e9)


def test_the_cache_of_cases_that_keep_their_own_spacing_has_their_own_shape():
    cases = [case(n, spacing_mm=(1, 1, z), shape=(10, 9, 500)) for n, z in enumerate((0.992, 1.0, 1.0))]
    plan = propose(fingerprint(cases), CPU)
    assert plan.value("transforms.spacing_mm") is None
    assert plan.cache_gb == pytest.approx(3 * 90 * 500 * 3 / 1e9)


CLASSES = {0: "background", 1: "plaque", 2: "bleed"}


@pytest.mark.parametrize(
    ("num_voxels", "regions", "alpha", "activation"),
    [
        (20, None, [0.25, 0.75, 0.75], "softmax"),
        (200, None, [0.5, 0.5, 0.5], "softmax"),
        (20, {"plaque": (1, 2), "bleed": (2,)}, [0.75, 0.75], "sigmoid"),
        (200, {"plaque": (1, 2), "bleed": (2,)}, [0.5, 0.5], "sigmoid"),
    ],
    ids=["rare classes", "common classes", "rare regions", "common regions"],
)
def test_every_output_has_its_own_weight(num_voxels, regions, alpha, activation):
    cases = [case(0, shape=(10, 10, 10), lesions=[lesion()], class_voxels={1: num_voxels, 2: 1})]
    found = fingerprint(cases, labels=CLASSES, regions=regions)
    plan = propose(found, CPU)
    assert plan.value("loss.alpha") == alpha
    assert (plan.activation, plan.out_channels) == (activation, len(alpha))
    names = "'plaque', 'bleed'" if regions else "'background', 'plaque', 'bleed'"
    assert f"of {names}" in proposed(found, "loss.alpha")[1]


def test_regions_ask_for_a_sigmoid_and_classes_for_nothing():
    regions = {"plaque": (1, 2), "bleed": (2,)}
    cases = [case(0, lesions=[lesion()], class_voxels={1: 20, 2: 0})]
    value, reason = proposed(fingerprint(cases, labels=CLASSES, regions=regions), "loss.activation")
    assert value == "sigmoid"
    assert "'plaque', 'bleed' may share voxels" in reason
    keys = {proposal.key for proposal in propose(fingerprint(cases, labels=CLASSES), CPU).proposals}
    assert "loss.activation" not in keys


def test_a_region_occurs_where_any_of_its_classes_does():
    regions = {"whole": (1, 2), "core": (2,)}
    labels = {0: "background", 1: "whole", 2: "core"}
    for voxels, absent in (({1: 0, 2: 5}, None), ({1: 5, 2: 0}, "'core' does not occur")):
        notes = propose(
            fingerprint([case(0, lesions=[lesion()], class_voxels=voxels)], labels=labels, regions=regions), CPU
        ).notes
        assert [note for note in notes if "does not occur" in note] == (
            [f"{absent} in any measured case"] if absent else []
        )


def test_cases_without_a_label_are_taught_by_the_majority_that_was_measured():
    bare = [case(n, lesions=[lesion()], has_label=False) for n in range(2)]
    value, reason = proposed(fingerprint(bare, num_readers=3), "annotations.fusion")
    assert value == "majority"
    assert reason.startswith("2 of 2 training cases have annotations and no label")
    assert "Labelled cases" not in reason
    value, reason = proposed(fingerprint([*bare, case(2)], num_readers=3), "annotations.fusion")
    assert value == "majority"
    assert reason.startswith("2 of 3 training cases")
    assert "Labelled cases that have annotations" in reason


def test_labels_of_all_training_cases_are_believed():
    cases = [case(0, lesions=[lesion()]), case(1, split="validation", has_label=False)]
    keys = {proposal.key for proposal in propose(fingerprint(cases, num_readers=3), CPU).proposals}
    assert "annotations.fusion" not in keys


def test_windows_over_validation_cases_are_counted():
    cases = [case(0, lesions=[lesion()]), case(1, split="validation")]
    plan = propose(fingerprint(cases), CPU)
    window = plan.patch.window_size
    starts = [
        len({min(start, max(0, n - size)) for start in range(0, max(1, n - size // 2), size // 2)})
        for n, size in zip((120, 100, 80), window, strict=True)
    ]
    assert plan.num_validation_windows == math.prod(starts)


def test_epochs_follow_the_budget_and_visits_are_told():
    found = fingerprint([case(0, lesions=[lesion()] * 10), case(1, lesions=[lesion()] * 30, split="validation")])
    quick = propose(found, Means("cpu", 8, 4, Budget.QUICK))
    epochs, steps = (quick.value(f"trainer.{name}") for name in ("max_epochs", "steps_per_epoch"))
    assert (epochs, steps) == (10, 100)
    visits = 1000 * quick.patch.batch_size * 0.5 / 10
    reason = {proposal.key: proposal.reason for proposal in quick.proposals}["trainer.max_epochs"]
    assert f"each of 10 training lesions is then centred about {visits:.0f} times" in reason
    assert "few" not in reason
    assert proposed(found, "trainer.max_epochs")[0] == 100


def test_few_visits_are_told():
    found = fingerprint([case(0, lesions=[lesion()] * 2000)])
    assert "which is few" in proposed(found, "trainer.max_epochs", Means("cpu", 8, 4, Budget.QUICK))[1]


def test_what_stands_out_is_noted():
    long = lesion(extent_mm=(3.0, 90.0, 3.0))
    faint = lesion(contrast=(0.2, None, -0.9))
    clear = lesion(contrast=(0.2, -1.1, None))
    unknown = lesion(contrast=(None, None, None))
    labels = {0: "background", 1: "lesion", 2: "never"}
    cases = [
        case(0, lesions=[long, faint, clear, unknown], class_voxels={1: 80, 2: 0}),
        case(1, class_voxels={1: 0, 2: 0}),
    ]
    notes = propose(fingerprint(cases, labels=labels), CPU).notes
    assert any(note.startswith("1 of 4 lesions are longer than the patch, 64 x 64 x 64 mm") for note in notes)
    assert any(note.startswith("1 of 3 lesions differ from the tissue around by less than 1 SD") for note in notes)
    assert any(note.startswith("'never' does not occur") for note in notes)
    assert any(note.startswith("1 of 2 cases have no lesion") for note in notes)
    assert not any("GPU" in note for note in notes)
    assert any("GPU" in note for note in propose(fingerprint(cases, labels=labels), GPU).notes)


def test_every_proposal_has_a_reason_and_no_setting_is_proposed_twice():
    for found, means in itertools.product((of_sizes(1, 2, 3), of_channels(channel(**CT))), (CPU, GPU)):
        proposals = propose(found, means).proposals
        assert all(len(proposal.reason) > 10 for proposal in proposals)
        assert len({proposal.key for proposal in proposals}) == len(proposals)
    with pytest.raises(KeyError):
        propose(found, means).value("loss.gama")


GPU = Means("cuda", 24, 2, Budget.STANDARD)
BODY, ISO = (150.0, 170.0, 140.0), (1.0, 1.0, 1.0)


def patch(body=BODY, spacing_mm=ISO, means=GPU):
    return plan_patch(body, spacing_mm, means, in_channels=1, out_channels=2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("budget", list(Budget))
def test_more_memory_never_makes_the_patch_smaller(device, budget):
    plans = [
        patch(means=Means(device, memory_gb, 2, budget)) for memory_gb in (2.0, 2.5, 3, 4, 6, 8, 12, 16, 24, 48, 80)
    ]
    voxels = [math.prod(plan.patch_size) for plan in plans]
    assert voxels == sorted(voxels)
    assert voxels[0] < voxels[-1] or device == "cpu"


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.floats(1, 600)] * 3),
    st.tuples(*[st.floats(0.3, 6)] * 3),
    st.sampled_from([Means(d, gb, 2, b) for d in ("cpu", "cuda") for gb in (2.5, 8, 40) for b in Budget]),
)
def test_a_plan_keeps_within_its_means(body, spacing_mm, means):
    try:
        plan = patch(body, spacing_mm, means)
    except ConfigError:
        assert means.memory_gb == 2.5
        return
    assert plan.memory_gb <= 0.8 * means.memory_gb + 1e-9
    assert means.least_batch <= plan.batch_size <= MOST_BATCH
    smallest = math.prod(plan.patch_size) <= 16**3
    assert smallest or plan.batch_size * math.prod(plan.patch_size) <= means.most_voxels
    for n, window, size, step in zip(plan.patch_size, plan.window_size, body, plan.levels.divisor, strict=True):
        assert 1 <= n <= max(1, round(size))
        assert n <= window <= max(2 * n, n)
        assert n % step == 0
        assert window % step == 0


def test_a_gpu_takes_the_whole_body_where_it_fits():
    plan = patch(means=Means("cuda", 80, 2, Budget.STANDARD))
    assert (plan.patch_size, plan.is_bound_by) == ((144, 160, 128), "body")
    assert plan.window_size == (160, 192, 160)


def test_little_memory_binds_the_patch_of_a_gpu():
    plan = patch(means=Means("cuda", 6, 2, Budget.STANDARD))
    assert plan.is_bound_by == "memory"
    assert plan.batch_size == 2


def test_on_a_cpu_time_binds_the_patch():
    plan = patch(means=Means("cpu", 64, 2, Budget.STANDARD))
    assert (plan.patch_size, plan.batch_size, plan.is_bound_by) == ((64, 64, 64), 2, "time")
    plan = patch(means=Means("cpu", 64, 2, Budget.QUICK))
    assert (plan.patch_size, plan.batch_size, plan.window_size) == ((32, 32, 32), 4, (64, 64, 64))


def test_a_patch_is_cubic_in_mm():
    plan = patch((400, 200, 66), (0.5, 1, 3), Means("cpu", 64, 2, Budget.STANDARD))
    assert plan.patch_size == (144, 64, 24)


def test_a_small_body_gives_more_patches():
    plan = patch((20, 24, 9), means=GPU)
    assert (plan.patch_size, plan.batch_size) == ((16, 24, 8), MOST_BATCH)


def test_a_memory_that_is_too_little_is_refused_with_what_is_needed():
    with pytest.raises(ConfigError, match=r"memory_gb=1 is too little: 2 patches of \[16, 16, 16\] voxels.* need 1\.3"):
        patch(means=Means("cpu", 1, 2, Budget.STANDARD))
    assert patch(means=Means("cpu", 1.35, 2, Budget.STANDARD)).memory_gb < 1.1


def test_a_window_is_the_patch_where_more_would_not_fit():
    """Four windows of eight times the voxels take more than two patches with all that the backward pass keeps."""
    plan = patch((600, 600, 600), means=Means("cuda", 4, 4, Budget.STANDARD))
    assert plan.window_size == plan.patch_size


def test_network_follows_the_proposed_patch():
    plan = propose(of_spacings((0.5, 0.5, 3)), GPU)
    assert plan.value("network.kernel_sizes")[0] == [3, 3, 1]
    assert plan.value("network.strides")[1] == [2, 2, 1]
    assert plan.value("network.channels")[:2] == [32, 64]
    assert "'S' is not convolved" in {p.key: p.reason for p in plan.proposals}["network.kernel_sizes"]
    assert np.all(np.array(plan.value("sampling.patch_size")) % np.array(plan.patch.levels.divisor) == 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("CT (HU)", True), ("Chest CT", True), ("ct_thorax", True), ("T1", False), ("FLAIR", False), ("PET_image", False)],
)
def test_a_name_that_says_the_modality_decides_whatever_the_values_look_like(name, expected):
    """Resampled CT is not whole any more, and a signed MR map can be whole and below 0."""
    looks = channel() if expected else channel(lowest=-300.0, is_integral=True)
    assert _is_ct(name, [looks]) is expected
