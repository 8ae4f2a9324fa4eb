"""Label values become classes and regions, however they are named."""

import pytest

from medfocal.data.formats.labels import scheme_of_classes, scheme_of_names
from medfocal.data.manifest import LabelScheme


def test_names_of_single_values_are_classes_in_the_order_of_their_naming():
    assert scheme_of_classes({"tumour": 1, "cyst": 2}) == LabelScheme({0: "background", 1: "tumour", 2: "cyst"})
    assert scheme_of_classes({"cyst": 2, "tumour": 1}) == LabelScheme(
        {0: "background", 1: "cyst", 2: "tumour"}, values={0: 0, 2: 1, 1: 2}
    )


def test_lists_without_a_common_value_are_classes_merged_of_them():
    scheme = scheme_of_classes({"tumour": [1, 4], "cyst": 2})
    assert scheme == LabelScheme({0: "background", 1: "tumour", 2: "cyst"}, values={0: 0, 1: 1, 4: 1, 2: 2})


def test_lists_with_a_common_value_are_regions_of_the_classes_behind_them():
    scheme = scheme_of_classes({"whole": [1, 2, 4], "core": [1, 4], "enhancing": 4}, 255)
    assert scheme.names == {0: "background", 1: "value 1", 2: "value 2", 3: "enhancing"}
    assert scheme.values == {0: 0, 1: 1, 2: 2, 4: 3}
    assert scheme.regions == {"whole": (1, 2, 3), "core": (1, 3), "enhancing": (3,)}
    assert scheme.learnt == {0: "background", 1: "whole", 2: "core", 3: "enhancing"}
    assert scheme.ignore_value == 255


def test_background_may_take_more_values_than_0():
    assert scheme_of_classes({"background": [0, 3], "lesion": 1}).values == {0: 0, 3: 0, 1: 1}


def test_a_mask_of_0_and_255_is_one_class():
    assert scheme_of_classes({"lesion": 255}) == LabelScheme({0: "background", 1: "lesion"}, values={0: 0, 255: 1})


def test_regions_need_no_common_value_where_they_are_called_so():
    scheme = scheme_of_names({"tumour": [1, 2], "cyst": [3]}, as_regions=True)
    assert scheme.regions == {"tumour": (1, 2), "cyst": (3,)}
    assert scheme.names == {0: "background", 1: "value 1", 2: "value 2", 3: "cyst"}
    assert scheme.values is None


@pytest.mark.parametrize(
    ("classes", "ignore_value", "message"),
    [
        ({}, None, "classes must be names"),
        (["lesion"], None, "classes must be names"),
        ({"lesion": "1"}, None, "lesion: '1'"),
        ({"lesion": 1.0}, None, "lesion: 1.0"),
        ({"lesion": True}, None, "lesion: True"),
        ({" ": 1}, None, "each name has a whole number"),
        ({"lesion": []}, None, "each class needs a label value"),
        ({"background": 0}, None, "one beside the background is needed"),
        ({"background": 1, "lesion": 2}, None, r"0 is the background, which was given \[1\]"),
        ({"lesion": [0, 1]}, None, "label value 0 belongs to more than one of background, lesion"),
        ({"a": [1, 2], "b": [2, 0]}, None, "label value 0 belongs to more than one"),
        ({"lesion": -1}, None, r"must be in \[0, 65535\], got -1"),
        ({"lesion": 65536}, None, r"must be in \[0, 65535\], got 65536"),
        ({"lesion": 1}, 1, "1 is both the ignored value and the value of a class"),
        ({f"c{n}": n for n in range(1, 257)}, None, "257 label values.*at most 256"),
    ],
)
def test_classes_that_make_no_sense_are_refused(classes, ignore_value, message):
    with pytest.raises(ValueError, match=message):
        scheme_of_classes(classes, ignore_value)


def test_255_classes_beside_the_background_are_as_many_as_a_byte_holds():
    assert scheme_of_classes({f"c{n}": n for n in range(1, 256)}).num_classes == 256
