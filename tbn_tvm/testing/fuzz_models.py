"""Small models of several kinds, from which damaged ones are made."""

from __future__ import annotations

import io

import numpy as np

from tbn_tvm.tiling import TiledTensor


def onnx_models() -> dict[str, bytes]:
    """Model files by name; the opset is 18."""
    return {name: make() for name, make in _ONNX.items()}


def torch_programs() -> dict[str, bytes]:
    """Files of ``torch.export.save`` by name, their batch free."""
    import torch

    from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze

    torch.manual_seed(0)
    networks = {
        "mlp": (
            torch.nn.Sequential(TiledLinear(16, 16, p=4), torch.nn.ReLU(), torch.nn.Linear(16, 4)),
            (16,),
        ),
        "cnn": (
            torch.nn.Sequential(
                TiledConv2d(2, 8, 3, p=4, padding=1),
                torch.nn.BatchNorm2d(8),
                torch.nn.ReLU(),
                torch.nn.AdaptiveAvgPool2d(1),
                torch.nn.Flatten(),
                torch.nn.Linear(8, 4),
            ),
            (2, 5, 5),
        ),
        "mixer": (_mixer(), (4, 8)),
    }
    files = {}
    for name, (network, shape) in networks.items():
        program = torch.export.export(
            freeze(network.eval()),
            (torch.randn(2, *shape),),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        files[name] = buffer.getvalue()
    return files


def _mixer():
    """A block of attention without weights of its own, and a tiled layer."""
    import torch

    from tbn_tvm.nn import TiledLinear

    class Mixer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(8)
            self.mix = TiledLinear(8, 8, p=2)

        def forward(self, x):
            y = self.norm(x)
            weights = torch.softmax(y @ y.transpose(1, 2), dim=-1)
            return (x + self.mix(weights @ y)).mean(1)[:, :4]

    return Mixer()


def _tiled(shape: tuple[int, ...], p: int) -> TiledTensor:
    rng = np.random.default_rng(len(shape))
    signs = rng.random(int(np.prod(shape)) // p) < 0.5
    return TiledTensor.from_signs(signs, rng.random(p) + 0.5, shape)


def _model(text: str, arrays: dict[str, np.ndarray], functions: tuple[str, ...] = ()) -> bytes:
    from onnx import numpy_helper, parser

    from tbn_tvm.export.functions import tiled_function

    domain = ', "org.tbn_tvm": 1' if functions else ""
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["": 18{domain}]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    model.functions.extend(tiled_function(name, 18) for name in functions)
    return model.SerializeToString()


def _with_functions() -> bytes:
    conv, dense = _tiled((8, 2, 3, 3), 4), _tiled((4, 8), 2)
    text = """
    g (float[n, 2, 5, 5] x) => (float[n, 4] y) {
        a = org.tbn_tvm.TiledConv <shape = [8, 2, 3, 3], p = 4, strides = [1, 1],
            pads = [1, 1, 1, 1], dilations = [1, 1], group = 1> (x, ct, ca)
        b = Relu (a)
        c = GlobalAveragePool (b)
        d = Flatten (c)
        y = org.tbn_tvm.TiledLinear <shape = [4, 8], p = 2> (d, dt, da, bias)
    }"""
    arrays = {"ct": conv.tile, "ca": conv.alphas, "dt": dense.tile, "da": dense.alphas}
    arrays["bias"] = np.linspace(-1, 1, 4, dtype=np.float32)
    return _model(text, arrays, ("TiledConv", "TiledLinear"))


def _convolutions() -> bytes:
    text = """
    g (float[1, 2, 6, 6] x) => (float[1, 4] y) {
        a = Conv <pads = [1, 0, 1, 0], strides = [2, 1]> (x, w, b)
        c = MaxPool <kernel_shape = [2, 2]> (a)
        d = BatchNormalization (c, s, t, m, v)
        e = Clip (d, low, high)
        f = Reshape (e, shape)
        y = Gemm <transB = 1, alpha = 0.5> (f, fc, bias)
    }"""
    ramp = np.linspace(0.5, 1.5, 8, dtype=np.float32)
    arrays = {"w": _tiled((8, 2, 3, 3), 2).expand(), "b": ramp, "s": ramp, "t": -ramp, "m": ramp}
    arrays |= {"v": ramp, "low": np.float32(-1), "high": np.float32(2)}
    arrays |= {"shape": np.array([1, -1]), "fc": _tiled((4, 48), 4).expand(), "bias": ramp[:4]}
    return _model(text, {name: np.asarray(a) for name, a in arrays.items()})


def _attention() -> bytes:
    text = """
    g (float[n, 4, 8] x) => (float[n, 4, 8] y) {
        q = MatMul (x, w)
        k = Transpose <perm = [0, 2, 1]> (q)
        s = MatMul (q, k)
        t = Mul (s, scale)
        a = Softmax <axis = -1> (t)
        v = MatMul (a, x)
        h = Add (v, x)
        u = LayerNormalization <axis = -1> (h, gain, offset)
        e = ReduceMean <keepdims = 1> (u, axes)
        z = Sub (u, e)
        r = Div (z, root)
        f = Erf (r)
        o = Add (f, one)
        p = Mul (z, o)
        y = Mul (p, half)
    }"""
    ones = np.ones(8, np.float32)
    arrays = {"w": np.ascontiguousarray(_tiled((8, 8), 4).expand().T), "gain": ones}
    arrays |= {"offset": 0 * ones, "axes": np.array([1]), "scale": np.float32(0.3)}
    arrays |= {"root": np.float32(1.41421), "one": np.float32(1), "half": np.float32(0.5)}
    return _model(text, {name: np.asarray(a) for name, a in arrays.items()})


def _folded() -> bytes:
    text = """
    g (float[2, 8] x, int64[2] i) => (float[2, 4] y, float[2, 2] z) {
        a = DequantizeLinear <axis = 0> (w, s, zero)
        b = Cast <to = 1> (h)
        c = Reshape (b, shape)
        d = Mul (c, s2)
        e = Concat <axis = 0> (a, d)
        f = Gather <axis = 0> (e, order)
        t = Transpose <perm = [1, 0]> (f)
        m = MatMul (x, t)
        k = ConstantOfShape (extent)
        l = Expand (k, wide)
        n = Slice (m, from, to, one)
        y = Add (n, l)
        z = Gather <axis = 1> (m, i)
    }"""
    text = text.replace("        m = MatMul (x, t)\n", "").replace(
        "(f)\n", "(f) m = MatMul (x, t)\n"
    )
    text = text.replace("float[2, 8] z", "float[2, 2] z")
    tiled = _tiled((4, 8), 2)
    arrays = {
        "w": np.sign(tiled.expand()).astype(np.int8),
        "s": np.abs(tiled.expand()[:, 0]),
        "zero": np.zeros(4, np.int8),
        "h": np.sign(tiled.expand()).astype(np.float16).reshape(-1),
        "shape": np.array([4, 8]),
        "s2": np.abs(tiled.expand()[:, :1]),
        "order": np.array([7, 0, -2, 3, 2, 1, 6, 4]),
        "extent": np.array([1, 4]),
        "wide": np.array([2, 4]),
        "from": np.array([0, 2]),
        "to": np.array([2, 6]),
        "one": np.array([0, 1]),
    }
    return _model(text, arrays)


_ONNX = {
    "functions": _with_functions,
    "convolutions": _convolutions,
    "attention": _attention,
    "folded": _folded,
}
