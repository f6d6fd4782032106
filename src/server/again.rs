//! What is read anew while the server serves: models and API keys.

use std::sync::Arc;

use futures_util::{Stream, StreamExt};

use super::keys::Keys;
use crate::registry::{ChangeError, Registry};

/// Reads models and API keys anew each time that it is `asked` to. What is asked meanwhile comes after it. What cannot be
/// used is said in the log, and what was there stays.
pub(super) async fn read_anew(asked: impl Stream<Item = ()>, registry: Arc<Registry>, keys: Keys) {
    let mut asked = std::pin::pin!(asked);
    while asked.next().await.is_some() {
        tracing::info!("models and API keys are read anew");
        let of_file = keys.clone();
        match tokio::task::spawn_blocking(move || of_file.read_again()).await {
            Ok(Ok(true)) => tracing::info!(api_keys = keys.count(), "API keys read anew"),
            Ok(Ok(false)) => {}
            Ok(Err(wrong)) => {
                let wrong = wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                tracing::error!(reason = wrong, "API keys not read anew; those that were taken are taken on");
            }
            Err(_) => tracing::error!("API keys not read anew: it ended in a panic"),
        }
        match registry.reload_all().await {
            // Each model that was refused has its line.
            Ok(_) | Err(ChangeError::Refused(_)) => {}
            Err(error) => tracing::error!(%error, "models not reloaded"),
        }
    }
}
