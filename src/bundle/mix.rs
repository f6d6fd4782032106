//! One ONNX graph that runs images of different masks together: each block on the images that keep it.

use super::assembly::{Assembly, border, result};
use super::join::JoinError;
use super::onnx::tensor_proto::DataType;
use super::onnx::tensor_shape_proto::dimension;
use super::onnx::{AttributeProto, ModelProto, ValueInfoProto};
use super::{Block, Bundle};

/// The inputs of a [mixed](mix) graph beside the images.
pub const ROWS: &str = "blockdrop.rows";
pub const COUNTS: &str = "blockdrop.counts";

/// The graph of the whole net in which every block takes the images that keep it out of the batch and runs on them; the
/// others get the block's shortcut.
///
/// Its inputs are the stem's (`[N, C, H, W]`); [`ROWS`], int64 `[R]`: for each block after the other, the positions in the
/// batch of the images that it runs on, and then for each block `N` positions where its results are, image by image: among
/// those of the shortcut, and from `N` on among those of the block; and [`COUNTS`], int64 `[2 K]`: how many these are, of
/// each block and then `N` each. Its output is the head's. A block may run on images that nobody wants its result of.
///
/// # Errors
/// Different versions of one operator set.
pub fn mix(bundle: &Bundle) -> Result<ModelProto, JoinError> {
    let count = bundle.blocks.len();
    let mut mixed = Assembly::new("mixed");
    let images = border(&bundle.stem);
    mixed.input(images.clone());
    mixed.input(ValueInfoProto::tensor(ROWS, DataType::Int64, vec![dimension::Value::DimParam("rows".to_owned())]));
    mixed.input(ValueInfoProto::tensor(COUNTS, DataType::Int64, vec![dimension::Value::DimValue(2 * count as i64)]));
    let parts = |what: &str| (0..count).map(|index| format!("{index}/{what}")).collect::<Vec<String>>();
    let (rows, places) = (parts("rows"), parts("places"));
    let mut carried = mixed.add(&bundle.stem, "stem/".to_owned(), images.name(), None)?;
    let split = mixed.operator("Split", &[ROWS, COUNTS], "split");
    split.output = [rows.clone(), places.clone()].concat();
    split.attribute.push(AttributeProto::of_int("axis", 0));
    for (index, (Block { kept, shortcut, .. }, (rows, places))) in
        bundle.blocks.iter().zip(rows.iter().zip(&places)).enumerate()
    {
        let name = |what: &str| format!("{index}/{what}");
        mixed.operator("Gather", &[&carried, rows], &name("taken"));
        // The number of images differs from block to block.
        let ran = mixed.add(kept, name("kept/"), &name("taken"), Some(rows))?;
        if let Some(shortcut) = shortcut {
            carried = mixed.add(shortcut, name("shortcut/"), &carried, None)?;
        }
        // Not ScatterND: on CUDA a single thread copies all of an image there, and GatherND waits for the device.
        let both = mixed.operator("Concat", &[&carried, &ran], &name("both"));
        both.attribute.push(AttributeProto::of_int("axis", 0));
        mixed.operator("Gather", &[&name("both"), places], &name("put"));
        carried = name("put");
    }
    carried = mixed.add(&bundle.head, "head/".to_owned(), &carried, None)?;
    Ok(mixed.finish(&carried, result(&bundle.head)))
}
