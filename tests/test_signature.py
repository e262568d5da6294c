"""What a compiled model accepts as inputs, and how it is told about the rest."""

import numpy as np
import pytest

from tbn_tvm.errors import InputError
from tbn_tvm.signature import Signature, TensorSpec

IMAGE = TensorSpec("image", ("batch", 3), "float32")
MASK = TensorSpec("mask", ("batch", 1), "uint8")
SCALE = TensorSpec("scale", (2,), "float32")
SIGNATURE = Signature((IMAGE, MASK, SCALE), (TensorSpec("output", ("batch",), "float32"),))


def arrays(batch: int = 4) -> dict[str, np.ndarray]:
    return {
        "image": np.arange(batch * 3, dtype=np.float32).reshape(batch, 3),
        "mask": np.ones((batch, 1), np.uint8),
        "scale": np.ones(2, np.float32),
    }


def bind(*args, **named) -> list[np.ndarray]:
    return SIGNATURE.bind(args, named)


def test_positional_arrays_bind_in_order():
    for got, wanted in zip(bind(*arrays().values()), arrays().values(), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: bind(**dict(reversed(x.items()))),
        lambda x: bind(dict(reversed(x.items()))),
        lambda x: bind(x["image"], scale=x["scale"], mask=x["mask"]),
    ],
    ids=["named", "mapping", "mixed"],
)
def test_names_bind_in_the_models_order(call):
    bound = call(arrays())
    assert [str(array.dtype) for array in bound] == ["float32", "uint8", "float32"]
    assert [array.shape for array in bound] == [(4, 3), (4, 1), (2,)]


def test_bound_arrays_are_contiguous():
    transposed = np.zeros((3, 4), np.float32).T
    bound = bind(**{**arrays(), "image": transposed})
    assert not transposed.flags.c_contiguous
    assert all(array.flags.c_contiguous for array in bound)


def test_lists_bind_where_their_dtype_is_right():
    signature = Signature((TensorSpec("x", (2,), "float64"),), ())
    np.testing.assert_array_equal(signature.bind(([1.0, 2.0],), {})[0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mask": None}, "input 'mask' is missing"),
        ({"masc": np.ones(1)}, "input 'masc' is unknown or given twice"),
        ({"image": np.zeros((4, 3))}, "input 'image' has dtype float64: expected float32"),
        ({"image": np.zeros((4, 3), ">f4")}, "input 'image' has dtype >f4: expected float32"),
        ({"image": np.zeros((4, 2), np.float32)}, r"'image' has shape \(4, 2\): expected \(batch,"),
        ({"image": np.zeros(3, np.float32)}, r"'image' has shape \(3,\): expected \(batch, 3\)"),
        ({"scale": np.float32(1)}, r"'scale' has shape \(\): expected \(2\)"),
        ({"mask": np.ones((5, 1), np.uint8)}, r"shape \(5, 1\).*with {'batch': 4}"),
    ],
    ids=["missing", "unknown", "dtype", "byte order", "extent", "rank", "scalar", "batch differs"],
)
def test_wrong_inputs_are_refused(change, told):
    changed = {name: x for name, x in {**arrays(), **change}.items() if x is not None}
    with pytest.raises(InputError, match=told):
        bind(**changed)


def test_an_input_given_by_position_and_name_is_refused():
    with pytest.raises(InputError, match="'image' is unknown or given twice"):
        bind(arrays()["image"], **arrays())


def test_too_many_inputs_are_refused():
    with pytest.raises(InputError, match="4 inputs given: expected image: float32"):
        bind(*arrays().values(), np.ones(1))


def test_an_empty_batch_is_refused():
    with pytest.raises(InputError, match=r"'image' has shape \(0, 3\)"):
        bind(**arrays(batch=0))


@pytest.mark.parametrize("ragged", [[[1.0], [2.0, 3.0]], {"image": 1}, None], ids=repr)
def test_what_is_no_array_is_refused(ragged):
    with pytest.raises(InputError, match="'image'"):
        bind(**{**arrays(), "image": ragged})


def test_specs_survive_json_fields():
    assert TensorSpec.from_dict(IMAGE.to_dict()) == IMAGE


def test_a_batch_size_fixes_every_free_dimension():
    assert IMAGE.with_batch(7).shape == (7, 3)
    assert SCALE.with_batch(7) == SCALE


@pytest.mark.parametrize(("spec", "nbytes"), [(IMAGE, 12), (MASK, 1), (SCALE, 8)])
def test_size_counts_free_dimensions_as_one(spec, nbytes):
    assert spec.nbytes == nbytes
