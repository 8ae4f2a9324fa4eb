"""The figure of visits: what training wrote, small lesions and large ones."""

import itertools

import pytest
from matplotlib.figure import Figure

from medfocal.errors import InputError
from medfocal.report.figures import LIGHT
from medfocal.report.visits import Visit, draw_visits, plot_visits, read_visits
from medfocal.train.visits import COLUMNS

ROWS = ["c1,p1,1,13,0.02,0.5,4,6", "c1,p1,2,4,0.006,0.25,2,5", "c2,p2,1,560,0.8,0.25,3,3"]


def written(folder, *rows):
    path = folder / "visits.csv"
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


def test_a_table_of_training_is_read_as_it_was_written(tmp_path):
    assert read_visits(written(tmp_path, *ROWS)) == [Visit(13, 4, 6), Visit(4, 2, 5), Visit(560, 3, 3)]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",".join(COLUMNS) + "\nc,p,1,many,1,1,1,1\n"])
def test_another_table_is_refused(tmp_path, text):
    path = tmp_path / "visits.csv"
    path.write_text(text + "x")
    with pytest.raises(InputError, match="is not a table of visits"):
        read_visits(path)


def test_words_say_least_most_and_median():
    words = draw_visits([Visit(13, 4, 6), Visit(4, 1, 5), Visit(560, 2, 3), Visit(7, 3, 3)]).words
    assert "each of 4 training lesions, against its size: 1 to 4, median 2.5." in words


def test_each_lesion_is_a_point_at_its_size_and_labels_keep_apart():
    visits = [Visit(13, 4, 6), Visit(4, 2, 5), Visit(60, 3, 3)]
    figure = Figure(figsize=(3.7, 2.9), layout="constrained")
    axes = figure.add_subplot()
    plot_visits(axes, visits, LIGHT)
    shown, centred = (line.get_xydata().tolist() for line in axes.lines)
    assert centred == [[13, 4], [4, 2], [60, 3]]
    assert shown == [[13, 6], [4, 5], [60, 3]]
    figure.canvas.draw()
    low, high = axes.get_xlim()
    labels = [label for label in axes.get_xticklabels(which="both") if low <= label.get_position()[0] <= high]
    boxes = sorted((label.get_window_extent() for label in labels if label.get_text()), key=lambda box: box.x0)
    assert len(boxes) >= 3
    assert all(first.x1 < second.x0 for first, second in itertools.pairwise(boxes))
