//! Two processes, mutual TLS with certificates made on the spot: how long does a call take?
//!
//! ```text
//! cargo run --release -p perf-transport --example ping [CALLS]
//! ```
//!
//! The program starts itself a second time as the server, calls it one call at a time and then with 64 in flight, and
//! prints percentiles.

use perf_transport::{Envelope, Router, Security, TlsIdentity, Transport, node_name};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const CLUSTER: &str = "ping";
const CLIENT: u64 = 1;
const SERVER: u64 = 2;
const CALLS: u64 = 20_000;
const IN_FLIGHT: u64 = 64;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match arguments.first().map(String::as_str) {
        Some("serve") => {
            let folder = arguments.get(1).ok_or("serve needs a folder")?;
            runtime.block_on(serve(Path::new(folder)))
        }
        Some(calls) => runtime.block_on(ping(calls.parse()?)),
        None => runtime.block_on(ping(CALLS)),
    }
}

/// An authority and a certificate for each node, as PEM files in a folder that only this user can read.
fn make_certificates(folder: &Path) -> Outcome<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(
        folder.join("authority.pem"),
        params.self_signed(&key)?.pem(),
    )?;
    let issuer = Issuer::new(params, key);
    for node in [CLIENT, SERVER] {
        let key = KeyPair::generate()?;
        // The name says which node of which cluster the certificate is for. Both sides check it.
        let params = CertificateParams::new(vec![node_name(node, CLUSTER)])?;
        let certificate = params.signed_by(&key, &issuer)?;
        fs::write(folder.join(format!("{node}.pem")), certificate.pem())?;
        fs::write(folder.join(format!("{node}.key")), key.serialize_pem())?;
    }
    Ok(())
}

fn security(folder: &Path, node: u64) -> Outcome<Security> {
    let identity = TlsIdentity::from_pem(
        &fs::read(folder.join("authority.pem"))?,
        &fs::read(folder.join(format!("{node}.pem")))?,
        &fs::read(folder.join(format!("{node}.key")))?,
    )?;
    Ok(Security::MutualTls(identity))
}

/// Prints its address, and answers until its standard input is closed.
async fn serve(folder: &Path) -> Outcome<()> {
    let router = Router::new().inline("vm", "status", |message, reply| {
        reply.put_slice(message.payload());
        Ok(())
    });
    let server = Transport::builder(SERVER, CLUSTER, security(folder, SERVER)?)
        .router(router)
        .listen("127.0.0.1:0")
        .start()
        .await?;
    println!("{}", server.address().unwrap_or_default());
    let end = tokio::task::spawn_blocking(|| std::io::stdin().lock().lines().count());
    end.await?;
    server.drain(Duration::from_secs(2)).await;
    Ok(())
}

async fn ping(calls: u64) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    make_certificates(folder.path())?;
    let mut server = Command::new(env::current_exe()?)
        .arg("serve")
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut address = String::new();
    let output = server.stdout.take().ok_or("the server has an output")?;
    BufReader::new(output).read_line(&mut address)?;
    let client = Transport::builder(CLIENT, CLUSTER, security(folder.path(), CLIENT)?)
        .peer(SERVER, address.trim())
        .start()
        .await?;
    println!("{calls} calls of 64 bytes, two processes, mutual TLS");
    measure(&client, calls / 10, 1).await?;
    report("one at a time", &mut measure(&client, calls, 1).await?);
    report(
        "64 in flight",
        &mut measure(&client, calls, IN_FLIGHT).await?,
    );
    client.drain(Duration::from_secs(2)).await;
    // Its standard input closes, and it ends by itself.
    drop(server.stdin.take());
    server.wait()?;
    Ok(())
}

/// The latency of each call, and the time of all of them.
async fn measure(
    client: &Transport,
    calls: u64,
    in_flight: u64,
) -> Outcome<(Vec<Duration>, Duration)> {
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..in_flight {
        let client = client.clone();
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            for _ in 0..calls / in_flight {
                let begin = Instant::now();
                client
                    .call(Envelope::new(SERVER, "vm", "status", &[7; 64]))
                    .await?;
                times.push(begin.elapsed());
            }
            Ok::<_, perf_transport::TransportError>(times)
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    Ok((all, begin.elapsed()))
}

fn report(name: &str, (times, all): &mut (Vec<Duration>, Duration)) {
    times.sort_unstable();
    let at = |share: f64| {
        let place = (times.len() as f64 * share) as usize;
        let time = times.get(place.min(times.len().saturating_sub(1)));
        time.copied().unwrap_or_default().as_secs_f64() * 1e6
    };
    let per_second = times.len() as f64 / all.as_secs_f64();
    println!(
        "{name:14} p50 {:8.1} us   p90 {:8.1} us   p99 {:8.1} us   p99.9 {:8.1} us   {per_second:9.0} calls/s",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999)
    );
}
