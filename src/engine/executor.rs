//! How a mask runs: one graph for the whole path, or a graph for each block. Both give the same logits.

use std::sync::{Mutex, PoisonError};

use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, TensorRef};
use prost::Message;

use super::error::EngineError;
use super::session::{Bound, Sessions};
use crate::bundle::{Bundle, join};
use crate::policy::Mask;

/// Runs the blocks that a mask keeps over images that all have this mask.
pub(super) trait Executor {
    /// Class logits, `[C]`, of each image.
    ///
    /// # Panics
    /// An image is not of the model's input size.
    fn run(&mut self, mask: &Mask, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError>;
}

/// A whole path compiled as one graph: fastest, for the one mask that it was made for.
pub(super) struct Fused {
    bound: Bound,
    mask: Mask,
}

impl Fused {
    /// Joins the graphs of `mask` in memory and makes one session of them, for `size` images at a time or any number.
    pub(super) fn new(
        bundle: &Bundle,
        mask: &Mask,
        sessions: &Sessions,
        size: Option<usize>,
        graph: bool,
    ) -> Result<Self, EngineError> {
        let joined = join(&bundle.path(mask))?;
        let session = sessions.make(&joined.encode_to_vec(), format_args!("the path {mask} as one graph"), graph)?;
        let bound = Bound::new(session, sessions, &bundle.stem.input, &bundle.head.output, size, graph);
        Ok(Self { bound, mask: mask.clone() })
    }

    /// Whether it must not run again.
    pub(super) fn is_spent(&self) -> bool {
        self.bound.is_spent()
    }
}

impl Executor for Fused {
    fn run(&mut self, mask: &Mask, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        assert_eq!(*mask, self.mask, "a fused path runs its own mask only");
        self.bound.run(images)
    }
}

/// A graph for each block: serves any mask at once, and all threads. Two threads that want the same block at the same
/// time take turns, and then follow each other through the blocks.
pub(super) struct BlockByBlock {
    stem: Mutex<Session>,
    blocks: Vec<BlockSessions>,
    head: Mutex<Session>,
    /// `[C, H, W]`
    image: Vec<i64>,
}

struct BlockSessions {
    kept: Mutex<Session>,
    /// `None` for the identity.
    shortcut: Option<Mutex<Session>>,
}

impl BlockByBlock {
    pub(super) fn new(bundle: &Bundle, sessions: &Sessions) -> Result<Self, EngineError> {
        let session = |graph| sessions.of(graph).map(Mutex::new);
        let blocks = bundle.blocks.iter().map(|block| {
            let shortcut = block.shortcut.as_ref().map(session).transpose()?;
            Ok(BlockSessions { kept: session(&block.kept)?, shortcut })
        });
        Ok(Self {
            blocks: blocks.collect::<Result<_, EngineError>>()?,
            stem: session(&bundle.stem)?,
            head: session(&bundle.head)?,
            image: bundle.stem.input.iter().map(|&side| side as i64).collect(),
        })
    }
}

impl Executor for &BlockByBlock {
    fn run(&mut self, mask: &Mask, images: &[&[f32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        assert_eq!(mask.len(), self.blocks.len(), "a mask has a bit for each block");
        let together;
        let pixels: &[f32] = match images {
            [alone] => alone,
            images => {
                together = images.concat();
                &together
            }
        };
        let shape: Vec<i64> = std::iter::once(images.len() as i64).chain(self.image.iter().copied()).collect();
        // On the CPU the activations pass from session to session as they are, without a copy.
        let mut x = step(&self.stem, TensorRef::from_array_view((shape, pixels))?)?;
        for (block, keep) in self.blocks.iter().zip(mask.iter()) {
            let session = if keep { Some(&block.kept) } else { block.shortcut.as_ref() };
            if let Some(session) = session {
                x = step(session, &x)?;
            }
        }
        let logits = step(&self.head, &x)?;
        let (_, values) = logits.try_extract_tensor::<f32>()?;
        Ok(values.chunks_exact(values.len() / images.len()).map(<[f32]>::to_vec).collect())
    }
}

/// Runs one graph of one input and one output.
fn step<'v>(session: &Mutex<Session>, input: impl Into<SessionInputValue<'v>>) -> Result<DynValue, EngineError> {
    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
    let outputs = session.run([input.into()])?;
    let (_, output) = outputs.into_iter().next().expect("a checked graph has one output");
    Ok(output)
}
