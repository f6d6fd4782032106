//! One ONNX graph that runs images of different masks together: each block on the images that keep it.

use super::assembly::{Assembly, border, result};
use super::join::JoinError;
use super::onnx::tensor_proto::DataType;
use super::onnx::tensor_shape_proto::{Dimension, dimension};
use super::onnx::{
    AttributeProto, ModelProto, TensorShapeProto, TypeProto, ValueInfoProto,
    type_proto::{self, Tensor},
};
use super::{Block, Bundle};

/// The inputs of a [mixed](mix) graph beside the images.
pub const ROWS: &str = "blockdrop.rows";
pub const COUNTS: &str = "blockdrop.counts";

/// The graph of the whole net in which every block takes the images that keep it out of the batch, runs on them, and puts
/// them back; the others get the block's shortcut.
///
/// Its inputs are the stem's (`[N, C, H, W]`), [`ROWS`], int64 `[R, 1]`: for each block after the other, the positions in
/// the batch of the images that keep it, and behind them at least one that nobody takes, since not every provider splits
/// nothing; and [`COUNTS`], int64 `[K + 1]`: how many these are. Its output is the head's. A position may come several
/// times: such an image is computed as often, to the same result.
///
/// # Errors
/// Different versions of one operator set.
pub fn mix(bundle: &Bundle) -> Result<ModelProto, JoinError> {
    let count = bundle.blocks.len();
    let mut mixed = Assembly::new("mixed");
    let images = border(&bundle.stem);
    mixed.input(images.clone());
    mixed.input(integers(ROWS, vec![dimension::Value::DimParam("rows".to_owned()), dimension::Value::DimValue(1)]));
    mixed.input(integers(COUNTS, vec![dimension::Value::DimValue(count as i64 + 1)]));
    let rows: Vec<String> = (0..count).map(|index| format!("{index}/rows")).collect();
    let mut carried = mixed.add(&bundle.stem, "stem/".to_owned(), images.name(), None)?;
    let split = mixed.operator("Split", &[ROWS, COUNTS], "split");
    split.output.clone_from(&rows);
    split.output.push("untaken".to_owned());
    split.attribute.push(AttributeProto::of_int("axis", 0));
    for (index, (Block { kept, shortcut, .. }, rows)) in bundle.blocks.iter().zip(&rows).enumerate() {
        let name = |what: &str| format!("{index}/{what}");
        mixed.operator("GatherND", &[&carried, rows], &name("taken"));
        // The number of images differs from block to block.
        let ran = mixed.add(kept, name("kept/"), &name("taken"), Some(rows))?;
        if let Some(shortcut) = shortcut {
            carried = mixed.add(shortcut, name("shortcut/"), &carried, None)?;
        }
        mixed.operator("ScatterND", &[&carried, rows, &ran], &name("put"));
        carried = name("put");
    }
    carried = mixed.add(&bundle.head, "head/".to_owned(), &carried, None)?;
    Ok(mixed.finish(&carried, result(&bundle.head)))
}

fn integers(name: &str, dims: Vec<dimension::Value>) -> ValueInfoProto {
    let dim = dims.into_iter().map(|value| Dimension { value: Some(value), ..Dimension::default() }).collect();
    let tensor = Tensor { elem_type: Some(DataType::Int64 as i32), shape: Some(TensorShapeProto { dim }) };
    let of = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(of), ..ValueInfoProto::default() }
}
