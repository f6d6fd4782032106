//! `grpc.health.v1`: what the [readiness](Readiness) says, told to those who watch too.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::server::readiness::Readiness;

/// The names that are known: the server as a whole, and its services.
pub(super) const SERVICES: [&str; 3] = ["", "inference.GRPCInferenceService", "blockdrop.v1.Classifier"];

pub(crate) struct Health {
    reporter: HealthReporter,
    readiness: Arc<Readiness>,
    following: Option<JoinHandle<()>>,
}

impl Health {
    pub(super) fn new(reporter: HealthReporter, readiness: Arc<Readiness>) -> Self {
        Self { reporter, readiness, following: None }
    }

    async fn tell(&self) {
        let status = if self.readiness.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in SERVICES {
            self.reporter.set_service_status(name, status).await;
        }
    }

    /// Tells what is, and whatever becomes of it as models come and go.
    pub(crate) async fn follow(self, mut models: watch::Receiver<bool>) -> Self {
        self.tell().await;
        let told = Self { reporter: self.reporter.clone(), readiness: Arc::clone(&self.readiness), following: None };
        let following = tokio::spawn(async move {
            while models.changed().await.is_ok() {
                told.tell().await;
            }
        });
        Self { following: Some(following), ..self }
    }

    /// Tells that the server stops, and nothing more.
    pub(crate) async fn stopping(mut self) -> Self {
        if let Some(following) = self.following.take() {
            following.abort();
            drop(following.await);
        }
        self.tell().await;
        self
    }

    /// Ends the streams of those who watch, which would keep their connections.
    pub(crate) async fn end(mut self) {
        for name in SERVICES {
            self.reporter.clear_service_status(name).await;
        }
    }
}
