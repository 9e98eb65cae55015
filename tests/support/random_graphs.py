"""Random graphs of operators that a proof follows, and some that it must not.

Every node is run with onnxruntime when it is drawn, so the graphs run. Other lengths are often equal to the number of
samples, so that confusing two axes is detected.
"""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from support.independence_models import FLOAT, INT64, model, value

OPSET = 17
UNARY = ("Relu", "Tanh", "Neg", "Sigmoid", "Abs", "Erf", "Softplus", "Identity", "Elu", "Not", "Sign")
BINARY = ("Add", "Sub", "Mul", "Max", "Min", "PRelu", "Mean", "Sum", "Greater", "Equal")
REDUCE = ("ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2", "ReduceMin", "ReduceProd")
_TYPES = {"float32": FLOAT, "int64": INT64, "bool": 9, "int32": 6, "uint8": 2, "int8": 3}


def options() -> onnxruntime.SessionOptions:
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    quiet.intra_op_num_threads = quiet.inter_op_num_threads = 1
    quiet.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return quiet


def run(content: bytes, feeds: dict) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(content, options(), providers=["CPUExecutionProvider"]).run(None, feeds)


class Drawn:
    """A graph under construction: its nodes, constants, and every tensor's contents for ``count`` samples."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.count = int(self.rng.integers(2, 5))
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.known: dict[str, np.ndarray] = {}
        self.inputs: dict[str, list] = {}
        self.operators: list[str] = []
        for number in range(1 if self.chance(0.7) else 2):
            name = f"x{number}"
            rest = [self.length() for _ in range(self.rng.integers(1, 4))]
            self.inputs[name] = ["N", *[dim if self.chance(0.6) else f"s{number}{at}" for at, dim in enumerate(rest)]]
            self.known[name] = self.numbers([self.count, *rest])
        made = 0
        for _ in range(60):
            if made >= 4 + seed % 12:
                break
            made += self.step()

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def length(self) -> int:
        return int(self.rng.choice([1, 2, 3, 4, self.count, self.count, 6]))

    def numbers(self, shape) -> np.ndarray:
        return self.rng.normal(size=shape).astype(np.float32)

    def pick(self, items):
        return items[int(self.rng.integers(len(items)))]

    def constant(self, array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = self.known[name] = np.asarray(array)
        return name

    def name(self) -> str:
        return f"t{len(self.nodes)}_{len(self.known)}"

    def add(self, op_type, inputs, outputs=1, **attributes) -> list[str]:
        """Add a node if onnxruntime runs it; raises otherwise."""
        names = [f"{self.name()}_{at}" for at in range(outputs)]
        made = helper.make_node(op_type, list(inputs), names, name=f"n{len(self.nodes)}", **attributes)
        given = list(dict.fromkeys(name for name in inputs if name))
        infos = [value(name, self.known[name].shape, _TYPES[str(self.known[name].dtype)]) for name in given]
        content = model([made], infos, names, opset=OPSET)
        found = run(content, {name: self.known[name] for name in given})
        for array in found:
            if array.size > 3000 or array.size == 0 or str(array.dtype) not in _TYPES:
                raise ValueError("too large, or nothing")
            if array.dtype == np.float32 and not (np.isfinite(array).all() and np.abs(array).max() < 1e4):
                raise ValueError("out of bounds")
        self.nodes.append(made)
        self.known.update(zip(names, found))
        return names

    def tensor(self, rank=None, dtype="float32", least=1) -> str:
        """A random tensor, later ones more often."""
        names = [
            name
            for name, array in self.known.items()
            if str(array.dtype) == dtype and array.ndim >= least and (rank is None or array.ndim in rank)
            and name not in self.constants
        ]  # fmt: skip
        if not names:
            raise ValueError("none of this kind")
        return names[-1 - min(int(self.rng.exponential(2.5)), len(names) - 1)]

    def step(self) -> bool:
        before = len(self.nodes), dict(self.known), dict(self.constants)
        kind = self.pick(KINDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                getattr(self, kind)()
            self.operators.append(kind)
            return True
        except Exception:
            del self.nodes[before[0] :]
            self.known, self.constants = before[1], before[2]
            return False

    # The drawing of nodes, one method a kind.

    def op_unary(self):
        self.add(self.pick(UNARY), [self.tensor()])

    def op_binary(self):
        self.add(self.pick(BINARY), [self.tensor(), self.tensor()])

    def op_binary_kept(self):
        """With a second tensor of the same rank, so that it fits more often."""
        first = self.tensor()
        self.add(self.pick(BINARY), [first, self.tensor(rank=[self.known[first].ndim])])

    def op_with_constant(self):
        first = self.tensor()
        shape = [dim if self.chance(0.5) else 1 for dim in self.known[first].shape][int(self.rng.integers(3)) :]
        second = self.constant(self.numbers(shape))
        self.add(self.pick(BINARY[:5]), [first, second] if self.chance(0.7) else [second, first])

    def op_where(self):
        first = self.tensor()
        condition = self.tensor(dtype="bool", least=0)
        self.add("Where", [condition, first, self.pick([self.tensor(), self.constant(self.numbers([1]))])])

    def op_transpose(self):
        first = self.tensor()
        self.add("Transpose", [first], perm=[int(at) for at in self.rng.permutation(self.known[first].ndim)])

    def op_reshape(self):
        first = self.tensor()
        shape = list(self.known[first].shape)
        target = [int(dim) for dim in self.regrouped(shape)]
        for at, dim in enumerate(target):
            if at < len(shape) and dim == shape[at] and self.chance(0.5):
                target[at] = 0
        if self.chance(0.6):
            target[int(self.rng.integers(len(target)))] = -1
        self.add("Reshape", [first, self.constant(np.array(target, np.int64))])

    def op_reshape_by_shape(self):
        """With lengths computed from the shape of a tensor."""
        first = self.tensor()
        target = [int(dim) for dim in self.regrouped(list(self.known[first].shape))]
        lengths = [self.constant(np.array([dim], np.int64)) for dim in target]
        at = int(self.rng.integers(len(target)))
        of = self.tensor()
        places = [axis for axis, dim in enumerate(self.known[of].shape) if target[at] % dim == 0]
        axis = self.pick(places)
        (shape,) = self.add("Shape", [of])
        if self.chance(0.5):
            (entry,) = self.add("Gather", [shape, self.constant(np.array([axis], np.int64))])
        else:
            bounds = [self.constant(np.array([number], np.int64)) for number in (axis, axis + 1)]
            (entry,) = self.add("Slice", [shape, *bounds])
        factor = target[at] // self.known[of].shape[axis]
        if factor != 1:
            (entry,) = self.add("Mul", [entry, self.constant(np.array([factor], np.int64))])
        lengths[at] = entry
        others = [place for place in range(len(target)) if place != at]
        if others and self.chance(0.5):
            lengths[self.pick(others)] = self.constant(np.array([-1], np.int64))
        (shape,) = self.add("Concat", lengths, axis=0)
        self.add("Reshape", [first, shape])

    def regrouped(self, shape):
        """Another shape with the same number of elements."""
        shape = list(shape)
        for _ in range(int(self.rng.integers(1, 3))):
            if len(shape) > 1 and self.chance(0.5):
                at = int(self.rng.integers(len(shape) - 1))
                shape[at : at + 2] = [shape[at] * shape[at + 1]]
            else:
                at = int(self.rng.integers(len(shape)))
                divisors = [number for number in range(1, shape[at] + 1) if shape[at] % number == 0]
                part = self.pick(divisors)
                shape[at : at + 1] = [part, shape[at] // part]
        return shape

    def op_flatten(self):
        first = self.tensor()
        self.add("Flatten", [first], axis=int(self.rng.integers(self.known[first].ndim + 1)))

    def op_squeeze(self):
        first = self.tensor()
        ones = [at for at, dim in enumerate(self.known[first].shape) if dim == 1]
        axes = [] if self.chance(0.2) else [self.constant(np.array([self.pick(ones)], np.int64))]
        self.add("Squeeze", [first, *axes])

    def op_unsqueeze(self):
        first = self.tensor(rank=[1, 2, 3])
        axis = int(self.rng.integers(-1, self.known[first].ndim + 1))
        self.add("Unsqueeze", [first, self.constant(np.array([axis], np.int64))])

    def op_concat(self):
        first = self.tensor()
        other = self.pick([first, self.tensor(), self.constant(self.numbers(self.known[first].shape))])
        self.add("Concat", [first, other], axis=int(self.rng.integers(self.known[first].ndim)))

    def op_split(self):
        first = self.tensor()
        axis = int(self.rng.integers(self.known[first].ndim))
        self.add("Split", [first], outputs=2, axis=axis)

    def op_slice(self):
        first = self.tensor()
        axis = int(self.rng.integers(self.known[first].ndim))
        start, end, step = (
            [0, 1, 1], [0, 1 << 62, 1], [1, 1 << 62, 1], [-1, -(1 << 62), -1], [0, -1, 1], [0, 1 << 62, 2],
            [0, self.count, 1],
        )[int(self.rng.integers(7))]  # fmt: skip
        parts = [self.constant(np.array([number], np.int64)) for number in (start, end, axis, step)]
        self.add("Slice", [first, *parts])

    def op_gather(self):
        first = self.tensor()
        axis = int(self.rng.integers(self.known[first].ndim))
        index = self.rng.integers(
            self.known[first].shape[axis], size=self.pick([(), (1,), (2,), (self.count,), (1, 2)])
        )
        self.add("Gather", [first, self.constant(np.asarray(index, np.int64))], axis=axis)

    def op_embed(self):
        """Numbers of the samples as indices into a table, or into each other."""
        first = self.tensor(dtype="int64", least=0)
        table = self.pick([self.constant(self.numbers([9, 2])), self.tensor()])
        self.add("Gather", [table, first], axis=int(self.rng.integers(2)))

    def op_gather_elements(self):
        first = self.tensor()
        axis = int(self.rng.integers(self.known[first].ndim))
        self.add("GatherElements", [first, self.tensor(dtype="int64")], axis=axis)

    def op_gather_nd(self):
        self.add("GatherND", [self.tensor(), self.tensor(dtype="int64")], batch_dims=int(self.rng.integers(2)))

    def op_pick_by_position(self):
        """x[arange(N), i], correct or not."""
        first = self.tensor(rank=[2, 3])
        (shape,) = self.add("Shape", [self.pick([first, "x0"])])
        (count,) = self.add("Gather", [shape, self.constant(np.array(0, np.int64))])
        zero, one = self.constant(np.array(0, np.int64)), self.constant(np.array(1, np.int64))
        (positions,) = self.add("Range", [zero, count, one])
        (best,) = self.add("ArgMax", [self.tensor(rank=[2, 3])], axis=self.pick([0, -1, 1]), keepdims=0)
        minus = self.constant(np.array([-1], np.int64))
        columns = [self.add("Unsqueeze", [name, minus])[0] for name in (positions, best)]
        if self.chance(0.2):
            columns.reverse()
        (rows,) = self.add("Concat", columns, axis=-1)
        self.add("GatherND", [first, rows])

    def op_pick_by_place(self):
        """The same with all rows concatenated, with a correct index or not."""
        first = self.tensor(rank=[3])
        (shape,) = self.add("Shape", [first])
        (count,) = self.add("Gather", [shape, self.constant(np.array(0, np.int64))])
        zero, one = self.constant(np.array(0, np.int64)), self.constant(np.array(1, np.int64))
        (positions,) = self.add("Range", [zero, count, one])
        (best,) = self.add("ArgMax", [self.tensor(rank=[2, 3])], axis=self.pick([-1, 1]), keepdims=0)
        if self.chance(0.3):
            (best,) = self.add(self.pick(["Div", "Sub", "Mul"]), [best, self.constant(np.array([2], np.int64))])
        length = self.pick([self.known[first].shape[1], 2, 3, 4])
        (base,) = self.add("Mul", [positions, self.constant(np.array([length], np.int64))])
        (place,) = self.add("Add", [best, base])
        rows = self.constant(np.array([-1, self.known[first].shape[2]], np.int64))
        (flat,) = self.add("Reshape", [first, rows])
        self.add("Gather", [flat, place])

    def op_expand(self):
        first = self.tensor()
        shape = list(self.known[first].shape)
        target = [self.length() if dim == 1 else self.pick([1, dim]) for dim in shape]
        if self.chance(0.4):
            target = [self.count, *target]
        if self.chance(0.5):
            (of,) = self.add("Shape", [self.tensor()])
            target_name = of
        else:
            target_name = self.constant(np.array(target, np.int64))
        self.add("Expand", [first, target_name])

    def op_tile(self):
        first = self.tensor()
        repeats = [int(self.rng.choice([1, 1, 1, 2])) for _ in self.known[first].shape]
        self.add("Tile", [first, self.constant(np.array(repeats, np.int64))])

    def op_constant_of_shape(self):
        (shape,) = self.add("Shape", [self.tensor()])
        fill = helper.make_tensor("fill", FLOAT, [1], [0.5])
        self.add("ConstantOfShape", [shape], value=fill)

    def op_same_for_all(self):
        """A tensor that does not depend on the samples, with computed lengths, next to the samples."""
        first = self.tensor()
        (shape,) = self.add("Shape", [first])
        axes = [int(self.rng.integers(self.known[first].ndim)) for _ in range(int(self.rng.integers(1, 3)))]
        (part,) = self.add("Gather", [shape, self.constant(np.array(axes, np.int64))])
        (made,) = self.add("ConstantOfShape", [part], value=helper.make_tensor("fill", FLOAT, [1], [1.0]))
        (counted,) = self.add("CumSum", [made, self.constant(np.array(0, np.int64))])
        use = self.pick(["add", "einsum", "matmul", "softmax", "concat", "unsqueeze"])
        if use == "einsum":
            letters = "ab"[: len(axes)]
            factor = self.constant(self.numbers([self.pick([1, dim]) for dim in self.known[counted].shape]))
            (counted,) = self.add("Einsum", [counted, factor], equation=f"{letters},{letters}->{letters[::-1]}")
        elif use == "matmul":
            (counted,) = self.add("MatMul", [counted, self.constant(self.numbers([self.known[counted].shape[-1], 1]))])
        elif use == "softmax":
            (counted,) = self.add("Softmax", [counted])
        elif use == "concat":
            (counted,) = self.add("Concat", [counted, counted], axis=-1)
        elif use == "unsqueeze":
            (counted,) = self.add("Unsqueeze", [counted, self.constant(np.array([-1], np.int64))])
        self.add(self.pick(["Add", "Mul"]), [self.tensor(), counted])

    def op_token(self):
        """A learned row for every sample, before the others."""
        first = self.tensor(rank=[3])
        (shape,) = self.add("Shape", [first])
        (count,) = self.add("Gather", [shape, self.constant(np.array([0], np.int64))])
        rest = self.constant(np.array([1, self.known[first].shape[2]], np.int64))
        (target,) = self.add("Concat", [count, rest], axis=0)
        token = self.constant(self.numbers([1, 1, self.known[first].shape[2]]))
        (row,) = self.add("Expand", [token, target])
        self.add("Concat", [row, first], axis=1)

    def computed_number(self) -> str:
        """A single integer, [1], computed from lengths, or in a way that is not followed."""
        if self.chance(0.2):
            number = self.constant(np.array([self.pick([0.0, 1.0, 2.0, -1.0])], np.float32))
            (number,) = self.add("Sqrt", [self.add("Mul", [number, number])[0]])
            return self.add("Cast", [number], to=INT64)[0]
        first = self.tensor()
        (shape,) = self.add("Shape", [first])
        axis = int(self.rng.integers(self.known[first].ndim))
        (number,) = self.add("Gather", [shape, self.constant(np.array([axis], np.int64))])
        if self.chance(0.3):
            (number,) = self.add("Cast", self.add("Cast", [number], to=FLOAT), to=INT64)
        return number

    def op_computed(self):
        """Uses of computed numbers: parts, repetitions, zeros, counts."""
        number = self.computed_number()
        for _ in range(int(self.rng.integers(3))):
            other = self.computed_number() if self.chance(0.5) else self.constant(np.array([self.length()], np.int64))
            operator = self.pick(["Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Equal", "Less", "ReduceProd"])
            if operator == "ReduceProd":
                (both,) = self.add("Concat", [number, other], axis=0)
                (number,) = self.add("ReduceProd", [both], axes=[0])
                continue
            (number,) = self.add(operator, [number, other] if self.chance(0.5) else [other, number])
            if operator in ("Equal", "Less"):
                both = [self.constant(np.array([size], np.int64)) for size in (1, 2)]
                (number,) = self.add("Where", [number, *both])
        first = self.tensor()
        rank = self.known[first].ndim
        axis = int(self.rng.integers(rank))
        one = self.constant(np.array([1], np.int64))
        use = self.pick(["zeros", "slice", "tile", "expand", "reshape", "count"])
        if use == "slice":
            bounds = [self.constant(np.array([0], np.int64)), number]
            if self.chance(0.3):
                bounds = [number, self.constant(np.array([1 << 62], np.int64))]
            self.add("Slice", [first, *bounds, self.constant(np.array([axis], np.int64))])
        elif use == "zeros":
            rest = [self.constant(np.array([self.length()], np.int64)) for _ in range(rank - 1)]
            (shape,) = self.add("Concat", [*rest[:axis], number, *rest[axis:]], axis=0)
            fill = helper.make_tensor("fill", FLOAT, [1], [0.5])
            (made,) = self.add("ConstantOfShape", [shape], value=fill)
            self.add("Add", [first, made])
        elif use == "tile":
            (repeats,) = self.add("Concat", [number if at == axis else one for at in range(rank)], axis=0)
            self.add("Tile", [first, repeats])
        elif use == "expand":
            (shape,) = self.add("Concat", [number if at == axis else one for at in range(rank)], axis=0)
            self.add("Expand", [first, shape])
        elif use == "reshape":
            minus = self.constant(np.array([-1], np.int64))
            (shape,) = self.add("Concat", [number, minus] if self.chance(0.5) else [minus, number], axis=0)
            self.add("Reshape", [first, shape])
        else:
            fill = helper.make_tensor("fill", FLOAT, [1], [1.0])
            (made,) = self.add("ConstantOfShape", [number], value=fill)
            (total,) = self.add("ReduceSum", [made], keepdims=0)
            self.add("Mul", [first, total])

    def op_count_as_number(self):
        """A length as a factor: correct if it is not the number of samples."""
        first = self.tensor()
        (shape,) = self.add("Shape", [first])
        axis = int(self.rng.integers(self.known[first].ndim))
        (length,) = self.add("Gather", [shape, self.constant(np.array(axis, np.int64))])
        (length,) = self.add("Cast", [length], to=FLOAT)
        self.add(self.pick(["Div", "Mul"]), [first, length])

    def op_reduce(self):
        first = self.tensor()
        axes = [int(self.rng.integers(-1, self.known[first].ndim))]
        attributes = {} if self.chance(0.1) else {"axes": axes}
        op_type = self.pick(REDUCE)
        inputs = [first]
        if op_type == "ReduceSum" and attributes:
            inputs, attributes = [first, self.constant(np.array(axes, np.int64))], {}
        self.add(op_type, inputs, keepdims=int(self.rng.integers(2)), **attributes)

    def op_normalized(self):
        first = self.tensor()
        axis = int(self.rng.integers(-1, self.known[first].ndim))
        op_type = self.pick(["Softmax", "LogSoftmax", "LayerNormalization", "LpNormalization", "Hardmax"])
        extra = []
        if op_type == "LayerNormalization":
            shape = self.known[first].shape[axis:] if axis >= 0 else self.known[first].shape[-1:]
            extra = [self.constant(self.numbers(shape))]
        self.add(op_type, [first, *extra], axis=axis)

    def op_instance(self):
        first = self.tensor(rank=[3, 4])
        size = self.known[first].shape[1]
        self.add("InstanceNormalization", [first, *[self.constant(self.numbers([size])) for _ in "ab"]])

    def op_arg(self):
        first = self.tensor()
        axis = int(self.rng.integers(-1, self.known[first].ndim))
        self.add(self.pick(["ArgMax", "ArgMin"]), [first], axis=axis, keepdims=int(self.rng.integers(2)))

    def op_top_k(self):
        first = self.tensor()
        axis = int(self.rng.integers(-1, self.known[first].ndim))
        count = self.constant(np.array([self.pick([1, 2])], np.int64))
        self.add("TopK", [first, count], outputs=2, axis=axis)

    def op_cumsum(self):
        first = self.tensor()
        axis = int(self.rng.integers(-1, self.known[first].ndim))
        self.add("CumSum", [first, self.constant(np.array(axis, np.int64))])

    def op_matmul(self):
        first = self.tensor(least=2)
        size = self.known[first].shape[-1]
        shape = self.pick([[size, 2], [1, size, 3], [self.count, size, 2], [size]])
        weights = self.constant(self.numbers(shape))
        if self.chance(0.2):
            self.add("MatMul", [self.constant(self.numbers([2, self.known[first].shape[-2]])), first])
        else:
            self.add("MatMul", [first, weights])

    def op_attend(self):
        """A product of a tensor and a transposed one."""
        first, second = self.tensor(least=2), self.tensor(least=2)
        order = list(range(self.known[second].ndim))
        (turned,) = self.add("Transpose", [second], perm=[*order[:-2], order[-1], order[-2]])
        self.add("MatMul", [first, turned])

    def op_gemm(self):
        first = self.tensor(rank=[2])
        turn = int(self.rng.integers(2))
        size = self.known[first].shape[0 if turn else 1]
        out = self.length()
        bias = [self.constant(self.numbers(self.pick([[out], [1, out], [self.count, out], [1]])))]
        self.add("Gemm", [first, self.constant(self.numbers([size, out])), *bias], transA=turn)

    def op_einsum(self):
        first = self.tensor(rank=[2, 3])
        letters = "abc"[: self.known[first].ndim]
        second = self.pick(
            [first, self.tensor(rank=[2]), self.constant(self.numbers([self.known[first].shape[-1], 2]))]
        )
        other = self.pick([letters, letters[-1] + "d", "ad", "da"])[: self.known[second].ndim]
        output = "".join(str(letter) for letter in self.rng.permutation(sorted(set(letters + other))))
        self.add("Einsum", [first, second], equation=f"{letters},{other}->{output[: int(self.rng.integers(1, 4))]}")

    def op_conv(self):
        first = self.tensor(rank=[3, 4])
        spatial = self.known[first].ndim - 2
        size = self.pick([1, 3])
        weights = self.constant(self.numbers([2, self.known[first].shape[1], *[size] * spatial]))
        pads = [size // 2] * (2 * spatial) if self.chance(0.7) else [0] * (2 * spatial)
        self.add("Conv", [first, weights], pads=pads, strides=[self.pick([1, 2])] * spatial)

    def op_conv_transpose(self):
        first = self.tensor(rank=[3])
        weights = self.constant(self.numbers([self.known[first].shape[1], 2, 2]))
        self.add("ConvTranspose", [first, weights], strides=[self.pick([1, 2])])

    def op_pool(self):
        first = self.tensor(rank=[3, 4])
        spatial = self.known[first].ndim - 2
        if self.chance(0.3):
            self.add("GlobalAveragePool", [first])
        else:
            outputs = 2 if self.chance(0.2) else 1
            self.add("MaxPool", [first], outputs=outputs, kernel_shape=[2] * spatial, strides=[1] * spatial,
                     pads=[1] * (2 * spatial), ceil_mode=int(self.rng.integers(2)))  # fmt: skip

    def op_batch_norm(self):
        first = self.tensor(least=2)
        size = self.known[first].shape[1]
        names = [self.constant(np.abs(self.numbers([size])) + 0.1) for _ in range(4)]
        self.add("BatchNormalization", [first, *names])

    def op_pad(self):
        first = self.tensor()
        pads = [int(self.rng.choice([0, 0, 1])) for _ in range(2 * self.known[first].ndim)]
        self.add("Pad", [first, self.constant(np.array(pads, np.int64))], mode=self.pick(["constant", "edge"]))

    def op_resize(self):
        first = self.tensor(rank=[3, 4])
        scales = np.array([self.pick([1, 1, 1, 2]) for _ in self.known[first].shape], np.float32)
        self.add("Resize", [first, "", self.constant(scales)], mode="nearest", nearest_mode="floor")

    def op_recurrent(self):
        first = self.tensor(rank=[3])
        op_type = self.pick(["LSTM", "GRU", "RNN"])
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type]
        size = self.known[first].shape[2]
        weights = [self.constant(self.numbers([1, gates * 2, width])) for width in (size, 2)]
        states = []
        if self.chance(0.3):
            shape = (1, self.known[first].shape[1], 2)
            fitting = [name for name, array in self.known.items() if array.shape == shape and array.dtype == np.float32]
            states = ["", "", self.pick(fitting)]
        self.add(op_type, [first, *weights, *states], outputs=2, hidden_size=2)

    def op_quantize(self):
        first = self.tensor()
        axis = int(self.rng.integers(self.known[first].ndim))
        if self.chance(0.2):
            (whole, scale, zero) = self.add("DynamicQuantizeLinear", [first], outputs=3)
            self.add("DequantizeLinear", [whole, scale, zero])
            return
        scale = self.constant(np.float32(0.05))
        zero = self.constant(np.uint8(128))
        if self.chance(0.4):
            size = self.known[first].shape[axis]
            scale = self.constant(np.abs(self.numbers([size])) + 0.05)
            zero = self.constant(np.full(size, 128, np.uint8))
        (whole,) = self.add("QuantizeLinear", [first, scale, zero], axis=axis)
        self.add("DequantizeLinear", [whole, scale, zero], axis=axis)

    def op_sequence_mask(self):
        """Compares positions within a sample with numbers of the sample."""
        first = self.tensor(dtype="int64", least=0)
        self.add("OneHot", [first, self.constant(np.array([4], np.int64)), self.constant(np.array([0, 1], np.float32))],
                 axis=self.pick([-1, 0]))  # fmt: skip

    def op_cast(self):
        self.add("Cast", [self.tensor(dtype=self.pick(["int64", "bool"]), least=0)], to=FLOAT)

    def op_trilu(self):
        self.add("Trilu", [self.tensor(least=2)], upper=int(self.rng.integers(2)))

    def op_pixel_shuffle(self):
        first = self.tensor(rank=[4])
        self.add(self.pick(["DepthToSpace", "SpaceToDepth"]), [first], blocksize=2)

    # What comes out.

    def candidates(self) -> list[str]:
        """Tensors that could have a row for each sample, last ones first."""
        made = [name for made in self.nodes for name in made.output]
        return [
            name for name in reversed(made) if self.known[name].ndim and self.known[name].shape[0] == self.count
        ]  # fmt: skip

    def content(self, output: str) -> bytes:
        """The model with the output ``output``, without nodes that it does not need."""
        infos = [value(name, dims) for name, dims in self.inputs.items()]
        needed, nodes = {output}, []
        for made in reversed(self.nodes):
            if needed & set(made.output):
                nodes.insert(0, made)
                needed |= set(made.input)
        constants = {name: array for name, array in self.constants.items() if name in needed}
        return model(nodes, infos, [output], constants, opset=OPSET)

    def feeds(self, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {name: rng.normal(size=self.known[name].shape).astype(np.float32) for name in self.inputs}


#: Computed shapes are drawn more often: most bugs would be there.
KINDS = [name for name in dir(Drawn) if name.startswith("op_")] + ["op_computed", "op_same_for_all"] * 3
