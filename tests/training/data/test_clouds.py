"""Readers of point clouds: small folders in each published form, and what is refused."""

import json

import numpy as np
import pytest
import torch

from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.training.data import load, s3dis, shapenet_part

RANDOM = np.random.default_rng(0)


def write_points(path, table: np.ndarray, delimiter: str = " ") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, table, fmt="%.5f", delimiter=delimiter)


# -- ModelNet40 ------------------------------------------------------------------------------


@pytest.fixture
def hdf5(tmp_path):
    """Five training shapes in two files, two test shapes, three classes."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "modelnet40_ply_hdf5_2048"
    folder.mkdir()
    (folder / "shape_names.txt").write_text("airplane\nbathtub\nbed\n")
    for split, files in (("train", [3, 2]), ("test", [2])):
        names = [f"ply_data_{split}{i}.h5" for i in range(len(files))]
        lines = "".join(f"data/modelnet40_ply_hdf5_2048/{name}\n" for name in names)
        (folder / f"{split}_files.txt").write_text(lines)
        for name, count in zip(names, files, strict=True):
            with h5py.File(folder / name, "w") as file:
                file["data"] = RANDOM.normal(3, 2, (count, 16, 3)).astype("f4")
                file["normal"] = RANDOM.normal(size=(count, 16, 3)).astype("f4")
                file["label"] = (np.arange(count) % 3).astype("u1")[:, None]
    return folder


@pytest.fixture
def resampled(tmp_path):
    """Three shapes of two classes as text, 12 points each."""
    folder = tmp_path / "modelnet40_normal_resampled"
    for name in ("chair_0001", "night_stand_0002", "chair_0003"):
        kind = name.rpartition("_")[0]
        write_points(folder / kind / f"{name}.txt", RANDOM.normal(size=(12, 6)), ",")
    (folder / "modelnet40_shape_names.txt").write_text("chair\nnight_stand\n")
    (folder / "modelnet40_train.txt").write_text("chair_0001\nnight_stand_0002\n")
    (folder / "modelnet40_test.txt").write_text("chair_0003\n")
    return folder


def test_hdf5_shapes_are_in_the_unit_sphere_with_their_labels(hdf5):
    h5py = pytest.importorskip("h5py")
    data = load("modelnet40", hdf5.parent, points=8)
    (clouds,) = data.train.inputs
    assert clouds.shape == (5, 3, 8)
    assert (data.classes, data.train.targets.tolist()) == (3, [0, 1, 2, 0, 1])
    torch.testing.assert_close(clouds.norm(dim=1).amax(1), torch.ones(5))
    with h5py.File(hdf5 / "ply_data_train1.h5") as file:
        raw = file["data"][0, :8]
    shift = clouds[3].T.numpy() * np.linalg.norm(raw - raw.mean(0), axis=1).max() + raw.mean(0)
    np.testing.assert_allclose(shift, raw, atol=1e-5)


def test_normals_follow_the_coordinates_as_they_are(hdf5, resampled):
    h5py = pytest.importorskip("h5py")
    with h5py.File(hdf5 / "ply_data_test0.h5") as file:
        normals = file["normal"][1, :4]
    clouds = load("modelnet40", hdf5, points=4, normals=True).test.inputs[0]
    np.testing.assert_array_equal(clouds[1, 3:].T.numpy(), normals)
    table = np.loadtxt(resampled / "chair" / "chair_0003.txt", np.float32, delimiter=",")
    clouds = load("modelnet40", resampled, points=4, normals=True).test.inputs[0]
    np.testing.assert_array_equal(clouds[0, 3:].T.numpy(), table[:4, 3:])


def test_text_shapes_take_the_first_points(resampled):
    data = load("modelnet40", resampled, points=5)
    assert data.train.inputs[0].shape == (2, 3, 5)
    assert (data.train.targets.tolist(), data.test.targets.tolist()) == ([0, 1], [0])


def test_a_label_below_zero_is_refused(hdf5):
    import h5py

    with h5py.File(hdf5 / "ply_data_test0.h5", "a") as file:
        del file["label"]
        file["label"] = np.array([0, -1], "i1")
    with pytest.raises(TbnError, match="label -1, but 3 classes"):
        load("modelnet40", hdf5, points=4)


def test_a_damaged_modelnet40_is_refused(hdf5, resampled, tmp_path):
    with pytest.raises(TbnError, match=r"expected \(N, 99 or more, 3\)"):
        load("modelnet40", hdf5, points=99)
    (hdf5 / "ply_data_test0.h5").write_bytes(b"no HDF5")
    with pytest.raises(TbnError, match=r"ply_data_test0\.h5: cannot be read as HDF5"):
        load("modelnet40", hdf5, points=4)
    (hdf5 / "shape_names.txt").write_text("airplane\n")
    with pytest.raises(TbnError, match="has 12 points; expected 13"):
        load("modelnet40", resampled, points=13)
    (resampled / "chair" / "chair_0003.txt").write_text("1,2,3\n")
    with pytest.raises(TbnError, match=r"chair_0003\.txt: has 3 numbers a line, expected 6"):
        load("modelnet40", resampled, points=1)
    (resampled / "modelnet40_train.txt").write_text("sofa_0001\n")
    with pytest.raises(TbnError, match="'sofa' is not among the names of classes"):
        load("modelnet40", resampled, points=1)
    with pytest.raises(TbnError, match="holds no ModelNet40; expected modelnet40_ply_hdf5_2048"):
        load("modelnet40", tmp_path / "modelnet40_normal_resampled" / "chair")


# -- ShapeNet part ---------------------------------------------------------------------------


@pytest.fixture
def shapenet(tmp_path):
    """Two mugs and a table."""
    folder = tmp_path / shapenet_part.FOLDER
    for path, parts, count in (("038/a", (36, 37), 9), ("038/b", (36, 37), 5), ("043/c", (47,), 7)):
        table = RANDOM.normal(size=(count, 7))
        table[:, 6] = RANDOM.choice(parts, count)
        write_points(folder / f"{path}.txt", table)
    (folder / "synsetoffset2category.txt").write_text("Mug\t038\nTable\t043\n")
    (folder / "train_test_split").mkdir()
    for split, name in (("train", "038/a"), ("val", "038/b"), ("test", "043/c")):
        listing = folder / "train_test_split" / f"shuffled_{split}_file_list.json"
        listing.write_text(json.dumps([f"shape_data/{name}"]))
    return folder


def test_shapes_come_with_their_category_and_parts(shapenet):
    data = load("shapenet-part", shapenet.parent, points=6, normals=True)
    clouds, categories = data.train.inputs
    assert (clouds.shape, data.classes) == ((1, 6, 6), 50)
    assert categories.argmax(1).tolist() == [11]
    assert data.parts[11] == (36, 37)
    # Points and their parts stay together.
    table = np.loadtxt(shapenet / "038" / "a.txt", np.float32)
    for point, part in zip(clouds[0].T.numpy(), data.train.targets[0].tolist(), strict=True):
        (row,) = np.flatnonzero((table[:, 3:6] == point[3:]).all(1))
        assert table[row, 6] == part
    assert data.test.inputs[1].argmax(1).tolist() == [15]


def test_a_shape_with_few_points_gives_all_of_them_and_some_twice(shapenet):
    clouds = load("shapenet-part", shapenet, points=8).validation.inputs[0]
    assert len(np.unique(clouds[0].T.numpy(), axis=0)) == 5


def test_parts_are_numbered_through():
    assert [part for parts in shapenet_part.PARTS.values() for part in parts] == list(range(50))


def test_a_damaged_shapenet_is_refused(shapenet, tmp_path):
    listing = shapenet / "train_test_split" / "shuffled_val_file_list.json"
    listing.write_text('{"a": 1}')
    with pytest.raises(TbnError, match="expected a JSON list of names"):
        load("shapenet-part", shapenet, points=4)
    listing.write_text('["shape_data/999/x"]')
    with pytest.raises(TbnError, match="'shape_data/999/x' is in no folder of a category"):
        load("shapenet-part", shapenet, points=4)
    write_points(shapenet / "038" / "a.txt", np.full((3, 7), 49.0))
    with pytest.raises(TbnError, match=r"a\.txt: part 49: Mug has 36 to 37"):
        load("shapenet-part", shapenet, points=4)
    (shapenet / "synsetoffset2category.txt").write_text("Cupboard 038\n")
    with pytest.raises(TbnError, match="'Cupboard 038': expected one of Airplane"):
        load("shapenet-part", shapenet, points=4)
    with pytest.raises(TbnError, match=r"holds neither synsetoffset2category\.txt"):
        load("shapenet-part", tmp_path / shapenet_part.FOLDER / "038")


# -- S3DIS -----------------------------------------------------------------------------------


@pytest.fixture
def rooms(tmp_path):
    """A room of 2 m by 1 m in area 1, and one of 1 m by 1 m in area 5; floor and a chair."""
    folder = tmp_path / s3dis.FOLDER
    for area, width, kind in ((1, 2.0, "chair"), (5, 1.0, "stairs")):
        annotations = folder / f"Area_{area}" / "office_1" / "Annotations"
        low, high = (10, -4, 1, 0, 0, 0), (10 + width, -3, 1, 255, 255, 255)
        floor = RANDOM.uniform(low, high, (400, 6))
        floor[0, :3], floor[1, :3] = low[:3], high[:3]
        write_points(annotations / "floor_1.txt", floor)
        low, high = (10, -4, 1, 0, 0, 0), (10 + width, -3, 3, 255, 255, 255)
        write_points(annotations / f"{kind}_2.txt", RANDOM.uniform(low, high, (200, 6)))
    return folder


def test_rooms_are_cut_into_blocks_of_a_metre(rooms):
    data = load("s3dis", rooms.parent, points=128)
    (blocks,) = data.train.inputs
    assert blocks.shape == (2, 9, 128)
    assert (len(data.test), data.classes) == (1, 13)
    assert blocks[:, :2].abs().max() <= 0.5 + 1e-5
    assert blocks[:, 2:].min() >= 0
    assert blocks[:, 3:].max() <= 1
    # The place in the room tells the blocks apart, the floor is where height is zero.
    assert blocks[0, 6].max() <= 0.5 + 1e-5 < 1.0 + 1e-5 >= blocks[1, 6].min() >= 0.5 - 1e-5
    floor = data.train.targets == s3dis.CLASSES.index("floor")
    assert (blocks[:, 2][floor] < 1e-5).all()
    assert (blocks[:, 2][~floor] > 1e-5).any()


def test_stairs_count_as_clutter_and_blocks_may_overlap(rooms):
    data = load("s3dis", rooms, points=64, stride=0.5)
    assert len(data.train) == 3
    assert set(data.test.targets.unique().tolist()) == {1, 12}


def test_a_control_character_between_numbers_is_a_space(rooms):
    path = rooms / "Area_5" / "office_1" / "Annotations" / "floor_1.txt"
    path.write_bytes(path.read_bytes() + b"10.5 -3.5 1.0 185\x10187 182\n")
    assert len(load("s3dis", rooms, points=16).test) == 1


def test_an_archive_beside_the_areas_is_no_area(rooms):
    (rooms / "Area_1.zip").write_bytes(b"")
    assert len(load("s3dis", rooms, points=16).train) > 0


def test_a_damaged_s3dis_is_refused(rooms):
    with pytest.raises(UsageError, match="stride 0: expected"):
        load("s3dis", rooms, stride=0)
    with pytest.raises(TbnError, match="holds Area_1, Area_5; expected Area_6"):
        load("s3dis", rooms, test_area=6)
    annotations = rooms / "Area_1" / "office_1" / "Annotations"
    (annotations / "floor_1.txt").write_text("1 2 3 4 5 six\n")
    with pytest.raises(TbnError, match=r"floor_1\.txt: cannot be read as 6 numbers a line"):
        load("s3dis", rooms)
    (annotations / "floor_1.txt").rename(annotations / "carpet_1.txt")
    with pytest.raises(TbnError, match=r"carpet_1\.txt: expected <class>_<number>\.txt"):
        load("s3dis", rooms)
