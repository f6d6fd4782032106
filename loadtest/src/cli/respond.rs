//! `blockdrop-loadtest respond`: the other side of `ceiling`.

use std::io::Write;
use std::net::SocketAddr;

use blockdrop_loadtest::responder;
use clap::Args;
use tokio::net::TcpListener;

use super::{Failure, runtime};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Address for HTTP.
    #[arg(long, default_value = "127.0.0.1:0")]
    http_addr: SocketAddr,

    /// Address for gRPC.
    #[arg(long, default_value = "127.0.0.1:0")]
    grpc_addr: SocketAddr,

    /// Threads to answer with.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
}

/// Says where it listens as the server does, and answers until it is killed or standard input ends.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    runtime(options.threads.into())?.block_on(async {
        let http = TcpListener::bind(options.http_addr).await?;
        let grpc = TcpListener::bind(options.grpc_addr).await?;
        let ready = serde_json::json!({"message": "ready", "address": http.local_addr()?, "grpc": grpc.local_addr()?});
        writeln!(std::io::stderr(), "{ready}")?;
        Ok(responder::respond(http, grpc).await?)
    })
}
