"""Translation of a JAX function to an ONNX model, operation by operation.

`jax.make_jaxpr` lists the operations, so that the model is defined only in `clipbias.clip`. JAX computes everything
that does not depend on the input, such as slices of stacked weights; the graph holds the results.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from onnx import helper, numpy_helper

from clipbias.clip.checkpoint import narrow

# Supported by runtimes since 2024; the version of the file format belongs to that of the operators.
OPSET = 21
IR_VERSION = 10

Value = np.ndarray | str  # a constant, or the name of a result of the graph
Operation = Any  # a `JaxprEqn`, whose types do not say that its variables have shapes
Rule = Callable[["Graph", Operation, Sequence[Value]], str | Sequence[Value]]

# Operations that only matter for gradients or the compiler.
IDENTITIES = {"copy", "name", "stop_gradient"}
# JAX and ONNX broadcast alike if operands have equal ranks, or a rank is 0.
ELEMENTWISE = {
    **{name: name.capitalize() for name in ("abs", "add", "and", "div", "erf", "exp", "log", "max", "min", "mul")},
    **{name: name.capitalize() for name in ("neg", "not", "or", "pow", "sqrt", "sub", "tanh")},
    **{"eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"},
    "logistic": "Sigmoid",
}
REDUCE_OPERATORS = {f"reduce_{name}": f"Reduce{name.capitalize()}" for name in ("max", "min", "prod", "sum")}


def to_onnx(function: Callable[[jax.Array], jax.Array], image_shape: Sequence[int]) -> onnx.ModelProto:
    """Translates a function from `images`, uint8 `[B, *image_shape]`, to `logits`, for every batch size `B`."""
    # Shapes of the jaxpr then hold multiples of this symbol, which the graph computes (`Graph.shape`).
    (batch,) = jax.export.symbolic_shape("B")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
    program = jax.make_jaxpr(function)(images)
    graph = Graph("images", batch)
    (result,) = graph.run(program, ["images"])
    graph.node("Identity", result, outputs=["logits"])
    # Constants that were folded away, such as whole stacks of weights, must not stay in the file.
    nodes, initializers = graph.needed("logits")
    inputs = [graph.describe("images", images)]
    outputs = [graph.describe("logits", program.out_avals[0])]
    return helper.make_model(
        helper.make_graph(nodes, "clipbias", inputs, outputs, initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="clipbias",
    )


class Graph:
    """Operators and constants of a model, in the order of their addition."""

    def __init__(self, image_name: str, batch: Any):
        self.batch = batch  # JAX's symbol
        self.names = (f"x{index}" for index in itertools.count())
        self.initializers: list[onnx.TensorProto] = []
        self.constants: dict[int, tuple[np.ndarray, str]] = {}
        self.shapes: dict[tuple, str] = {}
        # Operators before all others, whose results loops' bodies may read, too.
        self.first: list[onnx.NodeProto] = []
        self.nodes = self.first
        self.batch_size = self.node("Shape", image_name, start=0, end=1)
        self.nodes = []

    def run(self, program: ClosedJaxpr | Jaxpr, arguments: Sequence[Value]) -> list[Value]:
        """Adds the operations of a program; returns its outputs."""
        jaxpr, consts = (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, ())
        constants = [np.asarray(x) for x in consts]
        bound: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

        def read(x: Any) -> Value:
            is_literal = isinstance(x, Literal)
            return np.asarray(x.val, x.aval.dtype) if is_literal else bound[x]

        # An interpreter: each variable is a constant, or the name of a value in the graph.
        for eqn in jaxpr.eqns:
            bound.update(zip(eqn.outvars, self.apply(eqn, [read(x) for x in eqn.invars]), strict=True))
        return [read(x) for x in jaxpr.outvars]

    def apply(self, eqn: Operation, values: Sequence[Value]) -> Sequence[Value]:
        """Adds an operation; returns its outputs, which are constants if its inputs are."""
        name = eqn.primitive.name
        # JAX folds constants, but not those whose size is that of the batch, which is open. `custom_*` operations are
        # run through instead: they cannot be bound without their rules.
        sizes = [length for x in eqn.outvars for length in x.aval.shape] + [eqn.params.get("dim", 0)]
        is_fixed = not any(map(jax.export.is_symbolic_dim, sizes))
        if is_fixed and all(isinstance(x, np.ndarray) for x in values) and not name.startswith("custom_"):
            results = eqn.primitive.bind(*values, **eqn.params)
            return [np.asarray(x) for x in (results if eqn.primitive.multiple_results else [results])]
        if name not in RULES:
            # A called function, such as one of `jax.jit` or `jax.checkpoint`, is inlined.
            for called in (eqn.params.get(key) for key in ("jaxpr", "call_jaxpr")):
                if called is not None:
                    return self.run(called, values)
        if name in IDENTITIES:
            return values
        if name in ELEMENTWISE:
            return [self.node(ELEMENTWISE[name], *values)]
        if name in REDUCE_OPERATORS:
            return [self.node(REDUCE_OPERATORS[name], values[0], np.array(eqn.params["axes"]), keepdims=0)]
        if name not in RULES:
            raise NotImplementedError(f"JAX's operation {name!r} has no translation to ONNX")
        results = RULES[name](self, eqn, values)
        return [results] if isinstance(results, str) else results

    def node(self, operator: str, *inputs: Value, outputs: Sequence[str] | None = None, **attributes: Any) -> str:
        """Adds an operator; returns the name of its first output."""
        outputs = outputs or [next(self.names)]
        self.nodes.append(helper.make_node(operator, [self.name(x) for x in inputs], outputs, **attributes))
        return outputs[0]

    def name(self, value: Value) -> str:
        """Returns the name of a value; a constant becomes an initializer."""
        if isinstance(value, str):
            return value
        if id(value) not in self.constants:
            # Weights of a float16 checkpoint fit float16 exactly: half the file, and a cast in front of them.
            name = next(self.names)
            stored = narrow(value, "float16", exact=True) if value.dtype == np.float32 and value.ndim else value
            stored = stored.astype(np.int64) if stored.dtype == np.int_ else stored
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(stored).reshape(stored.shape), name))
            if stored.dtype != value.dtype:
                self.first.append(helper.make_node("Cast", [name], [name := next(self.names)], to=element(value.dtype)))
            self.constants[id(value)] = value, name  # a reference, so that no other array gets its id
        return self.constants[id(value)][1]

    def shape(self, lengths: Sequence[Any]) -> Value:
        """Returns lengths of axes as a vector; multiples of the batch size are computed in the graph."""
        if not any(jax.export.is_symbolic_dim(length) for length in lengths):
            return np.array(lengths, np.int64)
        if tuple(lengths) not in self.shapes:
            # Before all other operators, so that bodies of loops may use the shape, too.
            self.nodes, nodes = self.first, self.nodes
            parts: list[Value] = []
            for length in lengths:
                factor = length // self.batch if jax.export.is_symbolic_dim(length) else 0
                if factor and length != factor * self.batch:
                    raise NotImplementedError(f"an axis of length {length} for a batch of {self.batch} images")
                parts.append(self.node("Mul", self.batch_size, np.array([factor])) if factor else np.array([length]))
            self.shapes[tuple(lengths)] = self.node("Concat", *parts, axis=0)
            self.nodes = nodes
        return self.shapes[tuple(lengths)]

    def reshape(self, x: Value, lengths: Sequence[Any]) -> str:
        open_lengths = [-1 if jax.export.is_symbolic_dim(length) else length for length in lengths]
        if open_lengths.count(-1) == 1 and 0 not in open_lengths:  # the runtime infers a single open length
            return self.node("Reshape", x, np.array(open_lengths, np.int64))
        return self.node("Reshape", x, self.shape(lengths), allowzero=1)

    def window(self, x: Value, starts: Value, axes: Sequence[int], sizes: Sequence[int], shape: Sequence[int]) -> str:
        """Slices `sizes` out of axes from `starts [k]` on."""
        # JAX clamps starts so that the window lies inside; ONNX would return a smaller window.
        size = self.shape(sizes)
        highest = self.node("Sub", self.shape([shape[axis] for axis in axes]), size)
        starts = self.node("Cast", starts, to=onnx.TensorProto.INT64)
        starts = self.node("Min", self.node("Max", starts, np.array(0)), highest)
        return self.node("Slice", x, starts, self.node("Add", starts, size), np.array(axes))

    def describe(self, name: str, aval: Any) -> onnx.ValueInfoProto:
        shape = [length if isinstance(length, int) else str(length) for length in aval.shape]
        return helper.make_tensor_value_info(name, element(aval.dtype), shape)

    def needed(self, output: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Returns the operators and constants that the output depends on, since runtimes warn of others."""
        read, nodes = {output}, []
        for node in reversed([*self.first, *self.nodes]):
            if read.intersection(node.output):
                nodes.append(node)
                bodies = [inner for attribute in node.attribute for inner in attribute.g.node]
                read.update(name for part in (node, *bodies) for name in part.input)
        return nodes[::-1], [constant for constant in self.initializers if constant.name in read]


def element(dtype: Any) -> int:
    """Returns ONNX's number of a type."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _broadcast_in_dim(graph: Graph, eqn: Operation, values: Sequence[Value]) -> str:
    x, shape, kept = values[0], eqn.params["shape"], eqn.params["broadcast_dimensions"]
    # JAX names the axes of the result that the operand has; ONNX needs the new ones first, of length 1.
    aligned = [1] * len(shape)
    for axis, length in zip(kept, eqn.invars[0].aval.shape, strict=True):
        aligned[axis] = length
    if len(kept) < len(shape):
        x = graph.node("Unsqueeze", x, np.array([axis for axis in range(len(shape)) if axis not in kept]))
    return graph.node("Expand", x, graph.shape(shape)) if aligned != list(shape) else cast(str, x)


def _concatenate(graph: Graph, eqn: Operation, values: Sequence[Value]) -> str:
    axis = eqn.params["dimension"]
    # Some runtimes refuse arrays without elements.
    filled = [x for x, variable in zip(values, eqn.invars, strict=True) if variable.aval.shape[axis] != 0]
    return graph.node("Concat", *filled, axis=axis)


def _dot_general(graph: Graph, eqn: Operation, values: Sequence[Value]) -> str:
    ((left_summed, right_summed), (left_batch, right_batch)) = eqn.params["dimension_numbers"]
    dtype = eqn.outvars[0].aval.dtype
    left, right = (
        x if variable.aval.dtype == dtype else graph.node("Cast", x, to=element(dtype))
        for x, variable in zip(values, eqn.invars, strict=True)
    )
    ranks = [len(variable.aval.shape) for variable in eqn.invars]
    # Products with weights as MatMul, for which runtimes lay out weights in advance; not so for Einsum.
    if ranks[1] == 2 and not right_batch and (*left_summed, *right_summed) == (ranks[0] - 1, 0):
        return graph.node("MatMul", left, right)
    # Each axis gets a letter; summed and batch axes share theirs.
    letters = (chr(code) for code in itertools.count(ord("a")))
    axes = [[next(letters) for _ in range(rank)] for rank in ranks]
    for left_axis, right_axis in zip([*left_batch, *left_summed], [*right_batch, *right_summed], strict=True):
        axes[1][right_axis] = axes[0][left_axis]
    batch = [axes[0][axis] for axis in left_batch]
    free = [letter for letter in (*axes[0], *axes[1]) if (letter in axes[0]) != (letter in axes[1])]
    return graph.node("Einsum", left, right, equation="{},{}->{}".format(*map("".join, (*axes, batch + free))))


def _dynamic_slice(graph: Graph, eqn: Operation, values: Sequence[Value]) -> str:
    shape, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    cut = [axis for axis, size in enumerate(sizes) if size != shape[axis]]
    starts = graph.node("Concat", *(graph.reshape(values[1 + axis], [1]) for axis in cut), axis=0)
    return graph.window(values[0], starts, cut, [sizes[axis] for axis in cut], shape)


def _gather(graph: Graph, eqn: Operation, values: Sequence[Value]) -> str:
    """Translates a gather of a window, or of elements along some axes with all of the other axes."""
    # Indices outside the array are an error in ONNX, where JAX clamps or fills; the model has none.
    x, places = values
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, rank = eqn.invars[0].aval.shape, len(eqn.invars[1].aval.shape) - 1
    axes, batch = numbers.start_index_map, numbers.operand_batching_dims
    # A single window, as of a `dynamic_slice`.
    if not rank:
        x = graph.window(x, places, axes, [sizes[axis] for axis in axes], shape)
        collapsed = numbers.collapsed_slice_dims
        return graph.node("Squeeze", x, np.array(collapsed)) if collapsed else x
    rest = [axis for axis in range(len(shape)) if axis not in (*axes, *batch)]
    if any(sizes[axis] != 1 for axis in axes) or any(sizes[axis] != shape[axis] for axis in rest):
        raise NotImplementedError("a gather of several windows has no translation to ONNX")
    places_batch = numbers.start_indices_batching_dims
    order = [*places_batch, *(axis for axis in range(rank) if axis not in places_batch)]
    x = graph.node("Transpose", x, perm=[*batch, *axes, *rest])
    places = graph.node("Cast", graph.node("Transpose", places, perm=[*order, rank]), to=onnx.TensorProto.INT64)
    found = graph.node("GatherND", x, places, batch_dims=len(batch))
    # GatherND's axes are those of `order`, then `rest`; JAX's are interleaved.
    kept = [axis for axis in range(len(shape)) if axis not in (*batch, *numbers.collapsed_slice_dims)]
    of_offset = dict(zip(numbers.offset_dims, kept, strict=True))
    of_places = iter(range(rank))
    perm = []
    for axis in range(len(eqn.outvars[0].aval.shape)):
        if axis not in of_offset:
            perm.append(order.index(next(of_places)))
        elif of_offset[axis] in rest:
            perm.append(rank + rest.index(of_offset[axis]))
    found = graph.node("Transpose", found, perm=perm)
    single = [axis for axis, source in of_offset.items() if source not in rest]
    return graph.node("Unsqueeze", found, np.array(single)) if single else found


def _pad(graph: Graph, eqn: Operation, values: Sequence[Value]) -> str:
    low, high, between = zip(*eqn.params["padding_config"], strict=True)
    if any(between):
        raise NotImplementedError("padding between elements has no translation to ONNX")
    return graph.node("Pad", values[0], np.array([*low, *high]), values[1])


def _scan(graph: Graph, eqn: Operation, values: Sequence[Value]) -> list[Value]:
    # Unrolled, each layer's weights are constants that the runtime lays out; ONNX's Scan would slice them every time.
    body = eqn.params["jaxpr"].jaxpr
    # Versions of JAX name the counts differently; scanned and stacked arrays have one more axis outside.
    scans = [len(x.aval.shape) > len(part.aval.shape) for x, part in zip(eqn.invars, body.invars, strict=True)]
    stacks = [len(x.aval.shape) > len(part.aval.shape) for x, part in zip(eqn.outvars, body.outvars, strict=True)]
    carried, constants = stacks.count(False), scans.count(False) - stacks.count(False)
    shared, carry = values[:constants], list(values[constants : constants + carried])
    scanned = values[constants + carried :]
    stacked: list[list[Value]] = [[] for _ in range(stacks.count(True))]
    order = range(eqn.params["length"])
    # Carries pass from step to step by name; nothing of the loop remains in the graph.
    for step in reversed(order) if eqn.params["reverse"] else order:
        parts = [
            np.asarray(x[step]) if isinstance(x, np.ndarray) else graph.node("Gather", x, np.array(step))
            for x in scanned
        ]
        results = graph.run(eqn.params["jaxpr"], [*shared, *carry, *parts])
        carry = results[:carried]
        for stack, row in zip(stacked, results[carried:], strict=True):
            stack.append(row)
    for stack in stacked if eqn.params["reverse"] else ():
        stack.reverse()
    return [*carry, *(_stacked(graph, stack, 0) for stack in stacked)]


def _select_n(graph: Graph, eqn: Operation, values: Sequence[Value]) -> str:
    which, *cases = values
    if eqn.invars[0].aval.dtype != bool or len(cases) != 2:
        raise NotImplementedError("a choice among more than two arrays has no translation to ONNX")
    return graph.node("Where", which, cases[1], cases[0])


def _slice(graph: Graph, eqn: Operation, values: Sequence[Value]) -> str:
    shape, starts, ends = eqn.invars[0].aval.shape, eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or [1] * len(shape)
    cut = [axis for axis in range(len(shape)) if (starts[axis], ends[axis], steps[axis]) != (0, shape[axis], 1)]
    bounds = [graph.shape([numbers[axis] for axis in cut]) for numbers in (starts, ends)]
    return graph.node("Slice", values[0], *bounds, np.array(cut), np.array([steps[axis] for axis in cut]))


def _split(graph: Graph, eqn: Operation, values: Sequence[Value]) -> list[str]:
    names = [next(graph.names) for _ in eqn.outvars]
    graph.node("Split", values[0], np.array(eqn.params["sizes"]), outputs=names, axis=eqn.params["axis"])
    return names


def _stacked(graph: Graph, values: Sequence[Value], axis: int) -> str:
    return graph.node("Concat", *(graph.node("Unsqueeze", x, np.array([axis])) for x in values), axis=axis)


def _while(graph: Graph, eqn: Operation, values: Sequence[Value]) -> list[str]:
    # JAX tests before each step, ONNX's Loop after it and once before the first.
    test, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    tests, constants = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    state = list(values[tests + constants :])
    (goes_on,) = graph.run(test, [*values[:tests], *state])
    # The body is a graph of its own, whose operators are collected apart and then set back.
    step, before, *carried = [next(graph.names) for _ in range(2 + len(state))]
    graph.nodes, nodes = [], graph.nodes
    results = graph.run(body, [*values[tests : tests + constants], *carried])
    results = [*graph.run(test, [*values[:tests], *results]), *results]
    outputs = [graph.node("Identity", x) for x in results]  # ONNX forbids inputs and constants as outputs
    count, flag = (jax.ShapeDtypeStruct((), dtype) for dtype in (np.int64, np.bool_))
    avals = [x.aval for x in eqn.outvars]
    inputs = list(map(graph.describe, (step, before, *carried), (count, flag, *avals)))
    described = list(map(graph.describe, outputs, (flag, *avals)))
    inner = helper.make_graph(graph.nodes, f"body of {step}", inputs, described)
    graph.nodes = nodes
    names = [next(graph.names) for _ in state]
    graph.node("Loop", "", goes_on, *state, outputs=names, body=inner)
    return names


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "convert_element_type": lambda graph, eqn, x: graph.node("Cast", x[0], to=element(eqn.params["new_dtype"])),
    "dim_as_value": lambda graph, eqn, x: graph.node(
        "Cast", graph.node("Squeeze", graph.shape([eqn.params["dim"]])), to=element(eqn.outvars[0].aval.dtype)
    ),
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "erfc": lambda graph, eqn, x: graph.node("Sub", np.array(1, eqn.outvars[0].aval.dtype), graph.node("Erf", *x)),
    "gather": _gather,
    "integer_pow": lambda graph, eqn, x: graph.node("Pow", x[0], np.array(eqn.params["y"], eqn.outvars[0].aval.dtype)),
    "pad": _pad,
    "reshape": lambda graph, eqn, x: graph.reshape(x[0], eqn.params["new_sizes"]),
    "rsqrt": lambda graph, eqn, x: graph.node("Reciprocal", graph.node("Sqrt", *x)),
    "scan": _scan,
    "select_n": _select_n,
    "slice": _slice,
    "split": _split,
    "square": lambda graph, eqn, x: graph.node("Mul", x[0], x[0]),
    "squeeze": lambda graph, eqn, x: graph.node("Squeeze", x[0], np.array(eqn.params["dimensions"])),
    "stack": lambda graph, eqn, x: _stacked(graph, x, eqn.params["axis"]),
    "transpose": lambda graph, eqn, x: graph.node("Transpose", x[0], perm=eqn.params["permutation"]),
    "while": _while,
}
