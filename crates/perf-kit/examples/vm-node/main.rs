//! A control-plane node: an inventory of microVMs, replicated by Raft, durable, with its peers behind mutual TLS
//! and its clients on HTTP. `docs/NODE.md` builds it step by step.
//!
//! ```text
//! cargo run --release -p perf-kit --features full --example vm-node -- cluster --for 20 --chaos
//! ```

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;

mod answer;
mod api;
mod backend;
mod balance;
mod certificates;
mod cli;
mod cluster;
mod connections;
mod discovery;
mod groups;
mod inventory;
mod machine;
mod members;
mod naive;
mod node;
mod placement;
mod view;
mod worded;

use backend::Backend;
use cli::{Command, Serve};

fn main() -> Result<()> {
    let command = cli::parse(lexopt::Parser::from_env())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    match command {
        Command::Help(text) => {
            print!("{text}");
            Ok(())
        }
        Command::Certificates { directory, nodes } => certificates::make(&directory, 1..=nodes),
        Command::Serve(options) => runtime.block_on(serve(*options)),
        Command::Cluster(options) => runtime.block_on(cluster::run(options)),
    }
}

/// Runs a node until Ctrl-C, SIGTERM, or until it stops by itself.
async fn serve(options: Serve) -> Result<()> {
    let options = std::sync::Arc::new(options);
    let bound = connections::bound()?;
    let address: SocketAddr = options.own()?.http.parse()?;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let (backend, stopped) = start(&options).await?;
    let asked = signals()?;
    eprintln!("node {} answers on http://{address}/", options.id);
    let (stop, stopping) = tokio::sync::oneshot::channel();
    let router = api::router(backend.clone());
    let clients = connections::serve(listener, router, bound, async move {
        // Either way it is to stop.
        let _ = stopping.await;
    });
    let clients = tokio::spawn(clients);
    tokio::select! {
        reason = stopped => anyhow::bail!("the node stopped: {reason}"),
        signal = asked => eprintln!("node {} stops: {signal}", options.id),
    }
    // Clients are answered until another node leads, and are told which one.
    if let Backend::Fast(node) = &backend {
        node.hand_over().await;
    }
    let _ = stop.send(());
    clients.await.context("the HTTP server failed")?;
    if let Backend::Fast(node) = &backend {
        node.shutdown().await;
    }
    Ok(())
}

/// Resolves with the name of the signal that asks the process to end.
fn signals() -> Result<impl Future<Output = &'static str>> {
    #[cfg(unix)]
    let mut terminate = {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?
    };
    Ok(async move {
        #[cfg(unix)]
        tokio::select! {
            _ = tokio::signal::ctrl_c() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        }
        #[cfg(not(unix))]
        {
            let _ = tokio::signal::ctrl_c().await;
            "Ctrl-C"
        }
    })
}

type Stopped = std::pin::Pin<Box<dyn Future<Output = String> + Send>>;

/// Starts the node, and returns what resolves when it stops by itself.
async fn start(options: &std::sync::Arc<Serve>) -> Result<(Backend, Stopped)> {
    if options.naive {
        let node = naive::NaiveNode::start(options).await?;
        let watched = std::sync::Arc::clone(&node);
        let stopped = Box::pin(async move { watched.stopped().await });
        return Ok((Backend::Naive(node), stopped));
    }
    let node = node::FastNode::start(std::sync::Arc::clone(options)).await?;
    let watched = std::sync::Arc::clone(&node);
    let stopped = Box::pin(async move { watched.stopped().await });
    Ok((Backend::Fast(node), stopped))
}
