//! How a mask runs: one graph for the whole path, or a graph for each block. Both give the same logits.

use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, TensorRef};

use super::error::EngineError;
use super::provider::Provider;
use super::runtime::Runtime;
use crate::bundle::{Bundle, Graph, join};
use crate::policy::Mask;

/// Images as one tensor `[images, C, H, W]`, row after row.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a> {
    pub(super) pixels: &'a [f32],
    pub(super) images: usize,
    /// `[C, H, W]`
    pub(super) shape: &'a [u64],
}

impl Batch<'_> {
    pub(super) fn tensor(&self) -> Result<TensorRef<'_, f32>, EngineError> {
        let shape: Vec<i64> =
            std::iter::once(self.images as i64).chain(self.shape.iter().map(|&side| side as i64)).collect();
        Ok(TensorRef::from_array_view((shape, self.pixels))?)
    }
}

/// Runs the blocks that a mask keeps over a batch of images that all have this mask.
pub(super) trait Executor {
    /// Class logits, `[images, C]`, row after row.
    fn run(&mut self, mask: &Mask, batch: Batch<'_>) -> Result<Vec<f32>, EngineError>;
}

/// A whole path compiled as one graph: fastest, for the one mask that it was made for.
pub(super) struct Fused {
    session: Session,
    mask: Mask,
}

impl Fused {
    pub(super) fn new(bundle: &Bundle, mask: Mask, sessions: &Sessions<'_>) -> Result<Self, EngineError> {
        let joined = join(&bundle.path(&mask))?;
        let session = sessions.make(&prost::Message::encode_to_vec(&joined), "the path as one graph")?;
        Ok(Self { session, mask })
    }
}

impl Executor for Fused {
    fn run(&mut self, mask: &Mask, batch: Batch<'_>) -> Result<Vec<f32>, EngineError> {
        assert_eq!(*mask, self.mask, "a fused path runs its own mask only");
        values(&step(&mut self.session, batch.tensor()?)?)
    }
}

/// A graph for each block: serves any mask at once.
pub(super) struct BlockByBlock {
    stem: Session,
    blocks: Vec<BlockSessions>,
    head: Session,
}

struct BlockSessions {
    kept: Session,
    /// `None` for the identity.
    shortcut: Option<Session>,
}

impl BlockByBlock {
    pub(super) fn new(bundle: &Bundle, sessions: &Sessions<'_>) -> Result<Self, EngineError> {
        let blocks = bundle.blocks.iter().map(|block| {
            let shortcut = block.shortcut.as_ref().map(|graph| sessions.of(graph)).transpose()?;
            Ok(BlockSessions { kept: sessions.of(&block.kept)?, shortcut })
        });
        Ok(Self {
            stem: sessions.of(&bundle.stem)?,
            blocks: blocks.collect::<Result<_, EngineError>>()?,
            head: sessions.of(&bundle.head)?,
        })
    }
}

impl Executor for BlockByBlock {
    fn run(&mut self, mask: &Mask, batch: Batch<'_>) -> Result<Vec<f32>, EngineError> {
        assert_eq!(mask.len(), self.blocks.len(), "a mask has a bit for each block");
        // On the CPU the activations pass from session to session as they are, without a copy.
        let mut x = step(&mut self.stem, batch.tensor()?)?;
        for (block, keep) in self.blocks.iter_mut().zip(mask.iter()) {
            let session = if keep { Some(&mut block.kept) } else { block.shortcut.as_mut() };
            if let Some(session) = session {
                x = step(session, &x)?;
            }
        }
        values(&step(&mut self.head, &x)?)
    }
}

/// Makes sessions on one provider.
pub(super) struct Sessions<'r> {
    pub(super) runtime: &'r Runtime,
    pub(super) provider: Provider,
}

impl Sessions<'_> {
    pub(super) fn of(&self, graph: &Graph) -> Result<Session, EngineError> {
        self.make(&graph.to_bytes(), &graph.file.display().to_string())
    }

    fn make(&self, onnx: &[u8], what: &str) -> Result<Session, EngineError> {
        let failed = |error: &dyn std::fmt::Display| EngineError::Session {
            what: what.to_owned(),
            provider: self.provider,
            reason: error.to_string(),
        };
        let mut builder = self.provider.session(self.runtime).map_err(|error| failed(&error))?;
        builder.commit_from_memory(onnx).map_err(|error| failed(&error))
    }
}

/// Runs one graph of one input and one output.
pub(super) fn step<'v>(
    session: &mut Session,
    input: impl Into<SessionInputValue<'v>>,
) -> Result<DynValue, EngineError> {
    let outputs = session.run([input.into()])?;
    let (_, output) = outputs.into_iter().next().expect("a checked graph has one output");
    Ok(output)
}

/// The f32 values of an output.
pub(super) fn values(output: &DynValue) -> Result<Vec<f32>, EngineError> {
    let (_, values) = output.try_extract_tensor::<f32>()?;
    Ok(values.to_vec())
}
