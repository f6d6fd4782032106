//! Joins the graphs of a path, each one's output becoming the next one's input, into one ONNX graph in memory.

use super::assembly::{Assembly, border, result};
use super::graph::Graph;
use super::onnx::ModelProto;

/// Why graphs cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("nothing to join")]
    Empty,
    #[error("{after}: takes {input:?}, but {before} gives {output:?}", before = before.display(), after = after.display())]
    Shapes { before: std::path::PathBuf, after: std::path::PathBuf, output: Vec<u64>, input: Vec<u64> },
    #[error("{file}: imports {domain} {found}, another graph of the path {other}", file = file.display())]
    Opset { file: std::path::PathBuf, domain: String, found: i64, other: i64 },
}

/// One graph that computes `parts` one after another. Its input keeps the name of the first part's input and its
/// output that of the last part's output; every other name gets the part's position in front, so that parts made by
/// different tools, or the same part twice, do not clash.
///
/// # Errors
/// No parts, shapes that do not follow on each other, or different versions of one operator set.
pub fn join(parts: &[&Graph]) -> Result<ModelProto, JoinError> {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Err(JoinError::Empty) };
    for pair in parts.windows(2) {
        if pair[0].output != pair[1].input {
            return Err(JoinError::Shapes {
                before: pair[0].file.clone(),
                after: pair[1].file.clone(),
                output: pair[0].output.clone(),
                input: pair[1].input.clone(),
            });
        }
    }

    let mut joined = Assembly::new("path");
    let input = border(first);
    let mut carried = input.name().to_owned();
    joined.input(input);
    for (index, part) in parts.iter().enumerate() {
        carried = joined.add(part, format!("{index}/"), &carried, None)?;
    }
    Ok(joined.finish(&carried, result(last)))
}
