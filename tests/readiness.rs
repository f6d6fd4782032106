//! Ready means a model: every place that says whether the server takes requests says the same.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use blockdrop::proto::inference::{ServerReadyRequest, ServerReadyResponse};
use blockdrop_testkit::Net;
use common::server::{Server, answered};
use common::{models, png, run};
use serde_json::{Value, json};
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;

struct Asked {
    server: Server,
    channel: Channel,
}

impl Asked {
    async fn change(&self, name: &str, change: &str) {
        let url = self.server.admin_url(&format!("/v2/repository/models/{name}/{change}"));
        answered(self.server.client.post(url).send().await.unwrap()).await;
    }

    /// Whether the server says everywhere that it is ready, or everywhere that it is not for it has no model.
    async fn says(&self, ready: bool) {
        let (status, state) = if ready { (200, "ready") } else { (503, "no_model") };
        let found = self.server.get_admin("/readyz").await;
        assert_eq!(found.status(), status);
        assert_eq!(found.json::<Value>().await.unwrap(), json!({"ready": ready, "state": state}));
        let found = self.server.get("/v2/health/ready").await;
        assert_eq!(found.status(), status);
        assert_eq!(found.json::<Value>().await.unwrap(), json!({"ready": ready}));
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let path = axum::http::uri::PathAndQuery::from_static("/inference.GRPCInferenceService/ServerReady");
        let codec = ProstCodec::<ServerReadyRequest, ServerReadyResponse>::default();
        let found = client.unary(Request::new(ServerReadyRequest {}), path, codec).await.unwrap();
        assert_eq!(found.into_inner().ready, ready);
        let admin = self.server.admin.to_string();
        let found = run(["healthcheck", "--admin-addr", &admin]);
        if ready {
            assert_eq!(found.code, Some(0), "{found:?}");
        } else {
            found.failed(1, &["/readyz: not ready: it has no model"]);
        }
        // It is alive all along, and its metrics are shown.
        assert_eq!(self.server.get_admin("/livez").await.status(), 200);
        let series = self.server.metrics().await;
        let models = series.values.iter().filter(|(name, _)| name.starts_with("blockdrop_model_ready{"));
        assert_eq!(models.map(|(_, value)| value).sum::<f64>() > 0.0, ready);
    }

    /// Waits until `grpc.health.v1` says `status` of the server and of each service; who asks right after a change may
    /// be a moment early.
    async fn health(&self, status: ServingStatus) {
        let mut client = HealthClient::new(self.channel.clone());
        for service in ["", "inference.GRPCInferenceService", "blockdrop.v1.Classifier"] {
            let until = std::time::Instant::now() + common::PATIENCE;
            loop {
                let found = client.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
                if found.status() == status {
                    break;
                }
                assert!(std::time::Instant::now() < until, "{service:?}: {found:?}, expected {status:?}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_model_is_not_ready() {
    let dir = models("one", &Net::tiny(5));
    Net::tiny(6).write(&dir.path().join("other/1")).unwrap();
    let server = Server::start(dir.path(), &["--default-model", "one"]);
    let channel = Endpoint::new(format!("http://{}", server.grpc)).unwrap().connect().await.unwrap();
    let asked = Asked { server, channel };
    let mut watched = HealthClient::new(asked.channel.clone())
        .watch(HealthCheckRequest { service: "blockdrop.v1.Classifier".into() })
        .await
        .unwrap()
        .into_inner();
    let mut next = async || watched.message().await.unwrap().map(|told| told.status());
    assert_eq!(next().await, Some(ServingStatus::Serving));
    asked.says(true).await;
    asked.change("one", "unload").await;
    asked.says(true).await;
    asked.health(ServingStatus::Serving).await;

    asked.change("other", "unload").await;
    asked.says(false).await;
    asked.health(ServingStatus::NotServing).await;
    assert_eq!(next().await, Some(ServingStatus::NotServing));

    asked.change("other", "load").await;
    asked.says(true).await;
    asked.health(ServingStatus::Serving).await;
    assert_eq!(next().await, Some(ServingStatus::Serving));
    assert_eq!(asked.server.classify("?model=other", png(1)).await["model"], "other");

    // Who watches is told of the end, and does not hold it up.
    let mut server = asked.server;
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(next().await, Some(ServingStatus::NotServing));
    assert_eq!(next().await, None);
    assert_eq!(tokio::task::block_in_place(|| server.ended()).code(), Some(0));
    assert!(!server.log().iter().any(|line| line["message"] == "connections are cut off"));
}
