//! Shapes and FLOPs of an ONNX graph, computed from its operators.
//!
//! FLOPs follow the paper: two operations per multiply-accumulate, convolutions and linear layers only
//! (`Conv`, `Gemm`, `MatMul`). Operators without a rule here may still be used where the graph declares the shapes
//! they make (`value_info`), unless they would do work that goes uncounted.

use std::collections::{HashMap, HashSet};

use super::onnx::{AttributeProto, GraphProto, NodeProto, TensorShapeProto, tensor_shape_proto::dimension, type_proto};

type Shape = Vec<u64>;

/// What [`infer`] found.
pub(super) struct Inferred {
    pub(super) shapes: HashMap<String, Shape>,
    pub(super) flops: u64,
}

/// Where a graph cannot be followed, what was found there and what was expected.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) at: String,
    pub(super) found: String,
    pub(super) expected: String,
}

/// Work that the FLOPs convention counts and that has no rule here.
const UNCOUNTED: [&str; 11] = [
    "ConvTranspose",
    "ConvInteger",
    "QLinearConv",
    "DeformConv",
    "MatMulInteger",
    "QLinearMatMul",
    "LSTM",
    "GRU",
    "RNN",
    "Einsum",
    "Attention",
];

/// Computes the shape of every value of `graph` for an input of `shape` (batch first) and the FLOPs of the whole.
pub(super) fn infer(graph: &GraphProto, opset: i64, input: &str, shape: Shape) -> Result<Inferred, Problem> {
    let mut known = Known { graph, opset, batch: shape[0], shapes: HashMap::new(), integers: HashMap::new() };
    let mut made = HashSet::from([input]);
    let twice = |at: String| Problem {
        at,
        found: "a name that another value has".to_owned(),
        expected: "each value made once".to_owned(),
    };
    for tensor in &graph.initializer {
        let at = format!("initializer '{}'", tensor.name());
        if tensor.name().is_empty() {
            return Err(Problem { at, found: "no name".to_owned(), expected: "one by which it is used".to_owned() });
        }
        if !made.insert(tensor.name()) {
            return Err(twice(at));
        }
        let dims = tensor.dims.iter().map(|&dim| u64::try_from(dim)).collect::<Result<_, _>>();
        let dims = dims.map_err(|_| Problem {
            at,
            found: format!("shape {:?}", tensor.dims),
            expected: "no negative size".to_owned(),
        })?;
        known.shapes.insert(tensor.name().to_owned(), dims);
        if let Some(values) = tensor.integers() {
            known.integers.insert(tensor.name().to_owned(), values);
        }
    }
    known.shapes.insert(input.to_owned(), shape);

    let mut flops = 0u64;
    for node in &graph.node {
        let at = |wrong: Wrong| Problem {
            at: format!("node '{}' ({})", node.name(), node.op_type()),
            found: wrong.found,
            expected: wrong.expected,
        };
        // A rule looks at what it needs alone.
        if let Some(name) = node.input.iter().find(|name| !name.is_empty() && !made.contains(name.as_str())) {
            return Err(at(Wrong::unmade(name)));
        }
        if let Some(name) = node.output.iter().find(|name| !name.is_empty() && !made.insert(name)) {
            return Err(twice(format!("node '{}' ({}): its output '{name}'", node.name(), node.op_type())));
        }
        let (outputs, work) = known.node(node).map_err(at)?;
        flops = flops.checked_add(work).ok_or_else(|| at(Wrong::overflow()))?;
        for (name, shape) in node.output.iter().zip(outputs) {
            if !name.is_empty() {
                known.shapes.insert(name.clone(), shape);
            }
        }
    }
    Ok(Inferred { shapes: known.shapes, flops })
}

/// A [`Problem`] before the node's name is put to it.
#[derive(Debug)]
struct Wrong {
    found: String,
    expected: String,
}

impl Wrong {
    fn new(found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { found: found.into(), expected: expected.into() }
    }

    fn unmade(name: &str) -> Self {
        Self::new(format!("input '{name}' not made before it"), "nodes in running order, all inputs known")
    }

    fn overflow() -> Self {
        Self::new("sizes that overflow 64 bits", "a network of a size that exists")
    }
}

struct Known<'g> {
    graph: &'g GraphProto,
    opset: i64,
    batch: u64,
    shapes: HashMap<String, Shape>,
    integers: HashMap<String, Vec<i64>>,
}

impl Known<'_> {
    /// Shapes of the node's outputs, as far as they are used, and its FLOPs.
    fn node(&mut self, node: &NodeProto) -> Result<(Vec<Shape>, u64), Wrong> {
        let one = |shape: Shape| Ok((vec![shape], 0));
        if node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty()) {
            return Err(Wrong::new("a graph inside a node", "no control flow: a path is decided before it runs"));
        }
        if !matches!(node.domain(), "" | "ai.onnx") {
            return Err(Wrong::new(
                format!("an operator of the domain '{}'", node.domain()),
                "operators of ONNX itself, whose FLOPs can be counted",
            ));
        }
        match node.op_type() {
            "Conv" => {
                let (shape, work) = self.conv(node)?;
                Ok((vec![shape], work))
            }
            "Gemm" => {
                let (shape, work) = self.gemm(node)?;
                Ok((vec![shape], work))
            }
            "MatMul" => {
                let (shape, work) = self.matmul(node)?;
                Ok((vec![shape], work))
            }
            "Relu"
            | "LeakyRelu"
            | "Elu"
            | "Selu"
            | "Celu"
            | "Gelu"
            | "Sigmoid"
            | "HardSigmoid"
            | "HardSwish"
            | "Mish"
            | "Softplus"
            | "Softsign"
            | "Tanh"
            | "Erf"
            | "Exp"
            | "Log"
            | "Sqrt"
            | "Reciprocal"
            | "Neg"
            | "Abs"
            | "Floor"
            | "Ceil"
            | "Round"
            | "Clip"
            | "Identity"
            | "Dropout"
            | "Cast"
            | "Softmax"
            | "LogSoftmax"
            | "BatchNormalization"
            | "InstanceNormalization"
            | "LayerNormalization"
            | "GroupNormalization"
            | "LRN"
            | "QuantizeLinear"
            | "DequantizeLinear" => one(self.input(node, 0)?.clone()),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "PRelu" | "Max" | "Min" | "Sum" | "Mean" => {
                one(self.broadcast(node)?)
            }
            "MaxPool" | "AveragePool" | "LpPool" => one(self.pool(node)?),
            "GlobalAveragePool" | "GlobalMaxPool" => {
                let mut shape = self.input(node, 0)?.clone();
                shape.iter_mut().skip(2).for_each(|side| *side = 1);
                one(shape)
            }
            "Flatten" => one(self.flatten(node)?),
            "Reshape" => one(self.reshape(node)?),
            "Transpose" => one(self.transpose(node)?),
            "Squeeze" | "Unsqueeze" => one(self.squeeze(node)?),
            "Concat" => one(self.concat(node)?),
            "Pad" => one(self.pad(node)?),
            "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceL2" => one(self.reduce(node)?),
            "Constant" => one(self.constant(node)?),
            other if UNCOUNTED.contains(&other) => Err(Wrong::new(
                format!("operator {other}"),
                "operators whose FLOPs can be counted (Conv, Gemm, MatMul)",
            )),
            _ => self.declared(node),
        }
    }

    fn input(&self, node: &NodeProto, index: usize) -> Result<&Shape, Wrong> {
        let name =
            node.input_at(index).ok_or_else(|| Wrong::new(format!("no input {index}"), "the operator's inputs"))?;
        self.shapes.get(name).ok_or_else(|| Wrong::unmade(name))
    }

    /// The values of an integer input that has to be constant.
    fn constants(&self, node: &NodeProto, index: usize, what: &str) -> Result<&[i64], Wrong> {
        let name = node.input_at(index).ok_or_else(|| Wrong::new(format!("no {what}"), format!("{what} as input")))?;
        self.integers.get(name).map(Vec::as_slice).ok_or_else(|| {
            Wrong::new(format!("{what} '{name}' computed at run time"), format!("{what} as a constant of integers"))
        })
    }

    fn conv(&self, node: &NodeProto) -> Result<(Shape, u64), Wrong> {
        let (image, weight) = (self.input(node, 0)?, self.input(node, 1)?);
        let rank = image.len();
        if rank < 3 || weight.len() != rank {
            return Err(Wrong::new(
                format!("image {image:?} and weight {weight:?}"),
                "both [N or M, C, sides...], of one rank from 3",
            ));
        }
        let groups = positive(node.attr_int("group", 1), "group")?;
        if weight[1].checked_mul(groups) != Some(image[1]) || weight[0] % groups != 0 {
            return Err(Wrong::new(
                format!("{} channels in, weight {weight:?}, {groups} groups", image[1]),
                "channels = weight[1] * groups, and weight[0] a multiple of groups",
            ));
        }
        let kernel = &weight[2..];
        let stated = node.attr_ints("kernel_shape");
        if !stated.is_empty() && !stated.iter().map(|&side| side.cast_unsigned()).eq(kernel.iter().copied()) {
            return Err(Wrong::new(format!("kernel_shape {stated:?}"), format!("the weight's {kernel:?}")));
        }
        let sides = window(node, &image[2..], kernel, false)?;
        let shape: Shape = [image[0], weight[0]].into_iter().chain(sides).collect();
        // 2 * Cin/groups * kh * kw for each element of the output
        let each = product(&weight[1..])?;
        let work = product(&shape)?.checked_mul(each).and_then(|macs| macs.checked_mul(2));
        Ok((shape, work.ok_or_else(Wrong::overflow)?))
    }

    fn gemm(&self, node: &NodeProto) -> Result<(Shape, u64), Wrong> {
        let (a, b) = (self.input(node, 0)?, self.input(node, 1)?);
        let (&[a0, a1], &[b0, b1]) = (&a[..], &b[..]) else {
            return Err(Wrong::new(format!("{a:?} and {b:?}"), "two matrices"));
        };
        let (m, inner) = if node.attr_int("transA", 0) != 0 { (a1, a0) } else { (a0, a1) };
        let (rows, n) = if node.attr_int("transB", 0) != 0 { (b1, b0) } else { (b0, b1) };
        if inner != rows {
            return Err(Wrong::new(format!("{a:?} times {b:?}"), "equal inner sizes"));
        }
        Ok((vec![m, n], product(&[2, m, inner, n])?))
    }

    fn matmul(&self, node: &NodeProto) -> Result<(Shape, u64), Wrong> {
        let (a, b) = (self.input(node, 0)?, self.input(node, 1)?);
        let ([batch_a @ .., m, inner], [batch_b @ .., rows, n]) = (&a[..], &b[..]) else {
            return Err(Wrong::new(format!("{a:?} and {b:?}"), "two tensors of rank 2 or more"));
        };
        if inner != rows {
            return Err(Wrong::new(format!("{a:?} times {b:?}"), "equal inner sizes"));
        }
        let mut shape = broadcast(batch_a, batch_b)?;
        shape.extend([*m, *n]);
        let work = product(&shape)?.checked_mul(*inner).and_then(|macs| macs.checked_mul(2));
        Ok((shape, work.ok_or_else(Wrong::overflow)?))
    }

    fn broadcast(&self, node: &NodeProto) -> Result<Shape, Wrong> {
        let mut shape = self.input(node, 0)?.clone();
        for index in 1..node.input.len() {
            shape = broadcast(&shape, self.input(node, index)?)?;
        }
        Ok(shape)
    }

    fn pool(&self, node: &NodeProto) -> Result<Shape, Wrong> {
        let image = self.input(node, 0)?;
        let kernel = node.attr_ints("kernel_shape");
        if image.len() < 3 || kernel.len() != image.len() - 2 {
            return Err(Wrong::new(
                format!("image {image:?}, kernel_shape {kernel:?}"),
                "a kernel side for each side of the image",
            ));
        }
        let kernel = kernel.iter().map(|&side| positive(side, "kernel_shape")).collect::<Result<Vec<_>, _>>()?;
        let sides = window(node, &image[2..], &kernel, node.attr_int("ceil_mode", 0) != 0)?;
        Ok(image[..2].iter().copied().chain(sides).collect())
    }

    fn flatten(&self, node: &NodeProto) -> Result<Shape, Wrong> {
        let shape = self.input(node, 0)?;
        let at = match node.attr_int("axis", 1) {
            axis if axis == shape.len().cast_signed() as i64 => shape.len(),
            axis => resolve(axis, shape.len())?,
        };
        Ok(vec![product(&shape[..at])?, product(&shape[at..])?])
    }

    fn reshape(&self, node: &NodeProto) -> Result<Shape, Wrong> {
        let from = self.input(node, 0)?;
        let target = self.constants(node, 1, "shape")?;
        let copies_zero = node.attr_int("allowzero", 0) == 0;
        let total = product(from)?;
        let mut shape = Vec::with_capacity(target.len());
        let mut free = None;
        for (index, &size) in target.iter().enumerate() {
            shape.push(match size {
                -1 if free.is_none() => {
                    free = Some(index);
                    1
                }
                0 if copies_zero => *from.get(index).unwrap_or(&0),
                size => u64::try_from(size)
                    .map_err(|_| Wrong::new(format!("shape {target:?}"), "sizes, 0, and at most one -1"))?,
            });
        }
        let rest = product(&shape)?;
        if let Some(index) = free
            && rest > 0
            && total % rest == 0
        {
            shape[index] = total / rest;
        }
        if product(&shape)? != total {
            return Err(Wrong::new(format!("{from:?} to {target:?}"), "as many elements after as before"));
        }
        Ok(shape)
    }

    fn transpose(&self, node: &NodeProto) -> Result<Shape, Wrong> {
        let shape = self.input(node, 0)?;
        let order = node.attr_ints("perm");
        if order.is_empty() {
            return Ok(shape.iter().rev().copied().collect());
        }
        let mut seen = vec![false; shape.len()];
        let picked: Option<Shape> = order
            .iter()
            .map(|&axis| {
                let axis = usize::try_from(axis).ok().filter(|&axis| axis < shape.len())?;
                (!std::mem::replace(&mut seen[axis], true)).then(|| shape[axis])
            })
            .collect();
        picked
            .filter(|picked| picked.len() == shape.len())
            .ok_or_else(|| Wrong::new(format!("perm {order:?}"), "each axis once"))
    }

    fn squeeze(&self, node: &NodeProto) -> Result<Shape, Wrong> {
        let shape = self.input(node, 0)?;
        let axes = match node.input_at(1) {
            Some(_) => Some(self.constants(node, 1, "axes")?),
            None => None,
        };
        if node.op_type() == "Unsqueeze" {
            let axes = axes.ok_or_else(|| Wrong::new("no axes", "axes as input"))?;
            let rank = shape.len() + axes.len();
            let mut inserted = vec![false; rank];
            for &axis in axes {
                if std::mem::replace(&mut inserted[resolve(axis, rank)?], true) {
                    return Err(Wrong::new(format!("axes {axes:?}"), "each axis once"));
                }
            }
            let mut rest = shape.iter().copied();
            return Ok(inserted.into_iter().map(|new| if new { 1 } else { rest.next().unwrap_or(1) }).collect());
        }
        let Some(axes) = axes else { return Ok(shape.iter().copied().filter(|&size| size != 1).collect()) };
        let mut dropped = vec![false; shape.len()];
        for &axis in axes {
            let axis = resolve(axis, shape.len())?;
            if shape[axis] != 1 {
                return Err(Wrong::new(format!("axis {axis} of {shape:?}"), "axes of size 1"));
            }
            dropped[axis] = true;
        }
        Ok(shape.iter().zip(dropped).filter(|(_, dropped)| !dropped).map(|(&size, _)| size).collect())
    }

    fn concat(&self, node: &NodeProto) -> Result<Shape, Wrong> {
        let mut shape = self.input(node, 0)?.clone();
        let axis = resolve(node.attr_int("axis", 0), shape.len())?;
        for index in 1..node.input.len() {
            let next = self.input(node, index)?;
            let fits = next.len() == shape.len() && (0..shape.len()).all(|i| i == axis || next[i] == shape[i]);
            if !fits {
                return Err(Wrong::new(format!("{shape:?} and {next:?}"), format!("equal sizes but on axis {axis}")));
            }
            shape[axis] = shape[axis].checked_add(next[axis]).ok_or_else(Wrong::overflow)?;
        }
        Ok(shape)
    }

    fn pad(&self, node: &NodeProto) -> Result<Shape, Wrong> {
        let shape = self.input(node, 0)?;
        let pads = self.constants(node, 1, "pads")?;
        let axes = match node.input_at(3) {
            Some(_) => self
                .constants(node, 3, "axes")?
                .iter()
                .map(|&axis| resolve(axis, shape.len()))
                .collect::<Result<_, _>>()?,
            None => (0..shape.len()).collect::<Vec<_>>(),
        };
        if pads.len() != 2 * axes.len() {
            return Err(Wrong::new(format!("{} pads", pads.len()), format!("{}, two for each axis", 2 * axes.len())));
        }
        let mut padded = shape.clone();
        for (index, &axis) in axes.iter().enumerate() {
            padded[axis] = padded[axis]
                .checked_add_signed(pads[index])
                .and_then(|size| size.checked_add_signed(pads[axes.len() + index]))
                .ok_or_else(|| Wrong::new(format!("pads {pads:?} on {shape:?}"), "a size from 0"))?;
        }
        Ok(padded)
    }

    fn reduce(&self, node: &NodeProto) -> Result<Shape, Wrong> {
        let shape = self.input(node, 0)?;
        // The axes moved from an attribute to an input: ReduceSum at opset 13, the others at 18.
        let as_input = self.opset >= 18 || node.op_type() == "ReduceSum";
        let axes = match node.input_at(1) {
            Some(_) if as_input => self.constants(node, 1, "axes")?,
            _ if as_input => &[],
            _ => node.attr_ints("axes"),
        };
        if axes.is_empty() && node.attr_int("noop_with_empty_axes", 0) != 0 {
            return Ok(shape.clone());
        }
        let mut reduced = vec![axes.is_empty(); shape.len()];
        for &axis in axes {
            reduced[resolve(axis, shape.len())?] = true;
        }
        let keep = node.attr_int("keepdims", 1) != 0;
        let sizes = shape.iter().zip(reduced);
        Ok(sizes.filter(|(_, gone)| keep || !gone).map(|(&size, gone)| if gone { 1 } else { size }).collect())
    }

    fn constant(&mut self, node: &NodeProto) -> Result<Shape, Wrong> {
        let name = node.output.first().cloned().unwrap_or_default();
        if let Some(tensor) = node.attr("value").and_then(|attribute| attribute.t.as_ref()) {
            if let Some(values) = tensor.integers() {
                self.integers.insert(name, values);
            }
            return tensor
                .dims
                .iter()
                .map(|&dim| u64::try_from(dim))
                .collect::<Result<_, _>>()
                .map_err(|_| Wrong::new(format!("shape {:?}", tensor.dims), "no negative size"));
        }
        if let Some(value) = node.attr("value_int").map(AttributeProto::i) {
            self.integers.insert(name, vec![value]);
            return Ok(Vec::new());
        }
        if let Some(values) = node.attr("value_ints").map(|attribute| attribute.ints.clone()) {
            let shape = vec![values.len() as u64];
            self.integers.insert(name, values);
            return Ok(shape);
        }
        if let Some(values) = node.attr("value_floats") {
            return Ok(vec![values.floats.len() as u64]);
        }
        match node.attr("value_float") {
            Some(_) => Ok(Vec::new()),
            None => Err(Wrong::new("no value", "a tensor, number or list of numbers")),
        }
    }

    /// The shapes that the graph states for the outputs of an operator without a rule.
    fn declared(&self, node: &NodeProto) -> Result<(Vec<Shape>, u64), Wrong> {
        let mut shapes = Vec::with_capacity(node.output.len());
        for name in &node.output {
            let mut stated = self.graph.value_info.iter().chain(&self.graph.output);
            let shape = stated.find(|value| value.name() == name).and_then(|value| {
                match value.r#type.as_ref()?.value.as_ref()? {
                    type_proto::Value::TensorType(tensor) => self.with_batch(tensor.shape.as_ref()?),
                    _ => None,
                }
            });
            shapes.push(shape.ok_or_else(|| {
                Wrong::new(
                    format!("an operator without a shape rule, and no declared shape for its output '{name}'"),
                    "a known operator, or value_info with fixed sizes after the batch",
                )
            })?);
        }
        Ok((shapes, 0))
    }

    /// A declared shape with this run's batch in place of a free first dimension.
    fn with_batch(&self, shape: &TensorShapeProto) -> Option<Shape> {
        let mut sizes = Vec::with_capacity(shape.dim.len());
        for (index, dim) in shape.dim.iter().enumerate() {
            sizes.push(match dim.value {
                Some(dimension::Value::DimValue(size)) => u64::try_from(size).ok()?,
                _ if index == 0 => self.batch,
                _ => return None,
            });
        }
        Some(sizes)
    }
}

fn positive(value: i64, what: &str) -> Result<u64, Wrong> {
    u64::try_from(value)
        .ok()
        .filter(|&value| value > 0)
        .ok_or_else(|| Wrong::new(format!("{what} {value}"), "a number above 0"))
}

fn resolve(axis: i64, rank: usize) -> Result<usize, Wrong> {
    let resolved = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    resolved
        .and_then(|axis| usize::try_from(axis).ok())
        .filter(|&axis| axis < rank)
        .ok_or_else(|| Wrong::new(format!("axis {axis}"), format!("an axis of a tensor of rank {rank}")))
}

fn product(sizes: &[u64]) -> Result<u64, Wrong> {
    sizes.iter().try_fold(1u64, |all, &size| all.checked_mul(size)).ok_or_else(Wrong::overflow)
}

fn broadcast(a: &[u64], b: &[u64]) -> Result<Shape, Wrong> {
    let rank = a.len().max(b.len());
    let size = |shape: &[u64], index: usize| (index + shape.len()).checked_sub(rank).map_or(1, |at| shape[at]);
    (0..rank)
        .map(|index| match (size(a, index), size(b, index)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Wrong::new(format!("{a:?} with {b:?}"), "shapes that broadcast")),
        })
        .collect()
}

/// The sides of a convolution's or a pool's output.
fn window(node: &NodeProto, image: &[u64], kernel: &[u64], ceil: bool) -> Result<Shape, Wrong> {
    let rank = image.len();
    let list = |name: &str, default: i64, len: usize| match node.attr_ints(name) {
        [] => Ok(vec![default; len]),
        given if given.len() == len => Ok(given.to_vec()),
        given => Err(Wrong::new(format!("{name} {given:?}"), format!("{len} numbers"))),
    };
    let (strides, dilations, pads) =
        (list("strides", 1, rank)?, list("dilations", 1, rank)?, list("pads", 0, 2 * rank)?);
    let auto = node.attr_str("auto_pad");
    (0..rank)
        .map(|side| {
            let stride = positive(strides[side], "stride")?;
            let dilation = positive(dilations[side], "dilation")?;
            let reach = (kernel[side].max(1) - 1).checked_mul(dilation).and_then(|reach| reach.checked_add(1));
            let reach = reach.ok_or_else(Wrong::overflow)?;
            if matches!(auto, "SAME_UPPER" | "SAME_LOWER") {
                return Ok(image[side].div_ceil(stride));
            }
            let (before, after) = if auto == "VALID" { (0, 0) } else { (pads[side], pads[rank + side]) };
            let padded = image[side].checked_add_signed(before).and_then(|size| size.checked_add_signed(after));
            let span = padded.and_then(|padded| padded.checked_sub(reach)).ok_or_else(|| {
                Wrong::new(
                    format!("a kernel {reach} wide on {} pixels, padded by {before} and {after}", image[side]),
                    "a kernel that fits into the image",
                )
            })?;
            let steps = if ceil { span.div_ceil(stride) } else { span / stride };
            // With ceil_mode a last window that would start in the padding after the image is left out (opset 19).
            let beyond = ceil && steps.saturating_mul(stride) >= image[side].saturating_add_signed(before);
            Ok(steps + u64::from(!beyond))
        })
        .collect()
}

#[cfg(test)]
mod tests;
