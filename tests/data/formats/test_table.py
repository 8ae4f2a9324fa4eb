"""A CSV of cases: what its columns and cells say, and every reason to refuse them."""

import pytest

from medfocal.data.formats import read_dataset
from medfocal.errors import DatasetError, InputError


@pytest.fixture
def table(touch):
    """Writes a CSV of these lines, and empty files for all that looks like an image in it: `table(line, …)`."""

    def write(*lines, newline="\n", encoding="utf-8", name="cases.csv"):
        cells = [cell.strip('" ') for line in lines for cell in line.replace(";", ",").replace("\t", ",").split(",")]
        folder = touch(*(cell for cell in cells if cell.endswith((".nii", ".nii.gz"))))
        (folder / name).write_bytes(newline.join(lines).encode(encoding))
        return folder / name

    return write


def test_each_line_is_a_case(table, tmp_path):
    manifest = read_dataset(
        table(
            "age,case,patient,split,image:FLAIR,image:T1,label,annotations",
            "40,s1,p1,training,s1_f.nii,s1_t.nii,s1_l.nii,",
            "41,s2,p1,training,s2_f.nii,s2_t.nii,,s2_a.nii; s2_b.nii",
            ",s3,p2,test,s3_f.nii,s3_t.nii,,",
        )
    )
    assert manifest.name == "cases"
    assert manifest.channels == ("FLAIR", "T1")
    assert [(c.name, c.patient, c.split) for c in manifest.cases] == [
        ("s1", "p1", "training"), ("s2", "p1", "training"), ("s3", "p2", "test"),
    ]  # fmt: skip
    assert manifest.cases[0].images == (tmp_path / "s1_f.nii", tmp_path / "s1_t.nii")
    assert (manifest.cases[0].label, manifest.cases[0].annotations) == (tmp_path / "s1_l.nii", ())
    assert (manifest.cases[1].label, manifest.cases[1].annotations) == (
        None, (tmp_path / "s2_a.nii", tmp_path / "s2_b.nii"),
    )  # fmt: skip


def test_image_and_label_are_enough(table):
    (case,) = read_dataset(table("image,label", "deep/s1.nii.gz,s1_l.nii")).cases
    assert (case.name, case.patient, case.split) == ("s1", "s1", "training")


def test_masks_of_readers_are_enough_where_no_image_is_needed(table):
    path = table("case,annotations", "s1,a.nii;b.nii")
    (case,) = read_dataset(path, need_images=False).cases
    assert (case.images, len(case.annotations)) == ((), 2)
    with pytest.raises(DatasetError, match="1 case without an image"):
        read_dataset(path)


def test_windows_line_ends_a_byte_order_mark_and_empty_lines_change_nothing(table):
    lines = ("case,image,label", "s1,a.nii,l.nii", "", ",,", "s2,b.nii,m.nii")
    plain = read_dataset(table(*lines)).cases
    assert len(plain) == 2
    assert read_dataset(table(*lines, newline="\r\n", encoding="utf-8-sig")).cases == plain


@pytest.mark.parametrize(("delimiter", "name"), [(";", "cases.csv"), ("\t", "cases.tsv")])
def test_semicolons_and_tabs_may_stand_between_cells(table, delimiter, name):
    lines = ["case,image,annotations", 's1,a.nii,"r1.nii;r2.nii"']
    path = table(*(line.replace(",", delimiter) for line in lines), name=name)
    assert [file.name for file in read_dataset(path).cases[0].annotations] == ["r1.nii", "r2.nii"]


def test_names_may_have_spaces_letters_of_any_language_and_commas_in_quotes(table, tmp_path):
    (tmp_path / "a, b.nii").touch()
    path = table("case,image,label", 'Jänner 7 患者,"a, b.nii",Läsion ß.nii')
    (case,) = read_dataset(path).cases
    assert (case.name, case.images[0].name, case.label.name) == ("Jänner 7 患者", "a, b.nii", "Läsion ß.nii")


def test_paths_may_be_absolute_go_up_or_lead_through_links(table, tmp_path, touch):
    touch("real/a.nii", "real/deep/l.nii")
    (tmp_path / "link").symlink_to(tmp_path / "real/deep")
    (tmp_path / "file.nii").symlink_to(tmp_path / "real/a.nii")
    absolute = tmp_path / "real/a.nii"
    path = table("case,image,label", f"s1,{absolute},real/../link/l.nii", "s2,file.nii,link/../deep/l.nii")
    first, second = read_dataset(path).cases
    assert (first.images[0], first.label) == (absolute, tmp_path / "link/l.nii")  # plain, since it is the same
    assert second.label.is_file()  # not plain: tmp_path / "deep/l.nii" is none
    assert second.images[0].samefile(absolute)


def test_root_says_where_paths_start(table, tmp_path):
    path = table("image,label", "a.nii,b.nii")
    moved = tmp_path / "tables" / "cases.csv"
    moved.parent.mkdir()
    path.rename(moved)
    assert read_dataset(moved, root=tmp_path).cases[0].images == (tmp_path / "a.nii",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["case,images,label", "s,a,b"], r"no column 'images' \(did you mean 'image'\?\)"),
        (["case,Image:T1,label", "s,a,b"], r"no column 'Image' \(did you mean 'image'\?\)"),
        (["case,image,lable", "s,a,b"], r"no column 'lable' \(did you mean 'label'\?\)"),
        (["case,image,annotation", "s,a,b"], r"no column 'annotation' \(did you mean 'annotations'\?\)"),
        (["case,image,image", "s,a,b"], "the column 'image' is there twice"),
        (["case,image,image:T1,label", "s,a,b,c"], "there are both 'image' and 'image:T1'"),
        (["case,image:,label", "s,a,b"], "'image:' needs the name of a channel"),
        (["case,patient", "s,p"], "no column names files"),
        ([], "has the columns none: no column names files"),
        (["case,image,label"], "lists no case"),
        (["case,image,label", "s1,a.nii"], "line 2: 2 cells where the first line has 3"),
        (["case,image,label", "s1,a.nii,b.nii,c.nii"], "line 2: 4 cells where the first line has 3"),
        (["case,image,label", ",a.nii,b.nii"], "line 2: the cell of 'case' is empty"),
        (["patient,image,label", " ,a.nii,b.nii"], "line 2: the cell of 'patient' is empty"),
        (["image:A,image:B,label", "a.nii,,b.nii"], "line 2: there is no image:B"),
        (["case,image,label", "s1,,"], "line 2: no file is named"),
        (["split,image,label", "train,a.nii,b.nii"], r"got 'train' \(did you mean 'training'\?\)"),
        (["split,image,label", "Val,a.nii,b.nii"], r"got 'Val' \(did you mean 'validation'\?\)"),
        (["split,image,label", "fold3,a.nii,b.nii"], "training, validation, test, got 'fold3'$"),
        (["case,image,label", "s,a.nii,b.nii", "s,c.nii,d.nii"], "lists s more than once"),
        (["case,image,label", "s,a.nii,b.nii", "t,a.nii,d.nii"], "a.nii' is the image of s, t"),
        (["image:A,image:B,label", "a.nii,a.nii,b.nii"], "case 'a': two channels are one file"),
        (["case,image,label", "s,a.nii,a.nii"], "is both an image and a label or annotation"),
        (["case,image,annotations", "s,a.nii,r.nii;a.nii"], "is both an image and a label or annotation"),
        (["case,image,annotations", "s,a.nii,r.nii;r.nii"], "'annotations' names a file twice"),
        (["case,image,label", "../s,a.nii,b.nii"], "a case name becomes a file name"),
        (["case,image,label", "s,a.nii,gone.nrrd"], "1 file named in it does not exist"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(table, lines, message):
    with pytest.raises(DatasetError, match=message):
        read_dataset(table(*lines))


def test_all_lines_with_a_fault_are_named(table):
    with pytest.raises(DatasetError, match=r"(?s)has 2 faults:.*line 3: no file.*line 4: the cell of 'case'"):
        read_dataset(table("case,image,label", "s1,a.nii,b.nii", "s2,,", ",c.nii,d.nii"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("case,image\nä,b".encode("latin-1"), "is not UTF-8.*Save it as 'CSV UTF-8'"),
        (b'case,image\n"a,b\n', "cannot be read: unexpected end of data"),
        (b"case,image\na," + b"x" * 200_000, "cannot be read: field larger"),
    ],
)
def test_what_is_no_table_is_an_input_error(tmp_path, data, message):
    (tmp_path / "cases.csv").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path / "cases.csv")


def test_a_null_character_in_a_path_is_a_file_that_does_not_exist(tmp_path):
    (tmp_path / "cases.csv").write_bytes(b"case,image,label\ns,a\0.nii,b.nii\n")
    with pytest.raises(InputError, match="2 files named in it do not exist"):
        read_dataset(tmp_path / "cases.csv")
