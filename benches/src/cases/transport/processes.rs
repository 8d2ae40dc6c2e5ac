//! Experiments: calls between two processes, a core each.
//!
//! In one process a runtime's workers serve both sides, and a wake-up is often none. Here the server is a process of its own, which is this
//! binary once more, and each side is a runtime of one thread that is bound to a core of its own. Contenders run one after the other, since one
//! that polls busily would take the core from the others, in several turns; a figure is the median of its turns.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use std::{env, io};

use core_affinity::CoreId;
use perf_transport::{Config, Router, Security, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use super::{grpc, ours, peers, tls};
use crate::case::Run;
use crate::experiment::{Bound, Depth, Figure, Unit};

/// Names the contender whose server a process is to be.
const SERVE: &str = "PERF_BENCH_SERVE";
/// Which core a server's process is to be bound to.
const CORE: &str = "PERF_BENCH_CORE";
/// A server is bound to this one of the cores, and its client to the first.
const SERVER_PLACE: usize = 1;
const MESSAGE_BYTES: usize = 64;
const READ_BYTES: usize = 256 * 1024;

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// All messages in one write, and all of them read back: what the system and tokio take.
    Raw,
    RawBusy,
    Ours,
    OursBusy,
    Tonic,
    TonicBidi,
    Tarpc,
}

impl Contender {
    const ALL: [Self; 7] = [
        Self::Raw,
        Self::RawBusy,
        Self::Ours,
        Self::OursBusy,
        Self::Tonic,
        Self::TonicBidi,
        Self::Tarpc,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw tokio",
            Self::RawBusy => "raw tokio, busy",
            Self::Ours => "ours",
            Self::OursBusy => "ours, busy",
            Self::Tonic => "tonic unary",
            Self::TonicBidi => "tonic bidi",
            Self::Tarpc => "tarpc",
        }
    }

    const fn is_busy(self) -> bool {
        matches!(self, Self::OursBusy | Self::RawBusy)
    }

    const fn is_peer(self) -> bool {
        matches!(self, Self::TonicBidi | Self::Tarpc)
    }
}

/// The cores, as they were before any thread was bound: a bound thread sees its own core alone, and so do the threads and processes that
/// it starts.
static CORES: LazyLock<Vec<CoreId>> =
    LazyLock::new(|| core_affinity::get_core_ids().unwrap_or_default());

/// Binds this thread to a core.
pub(super) fn bind(place: usize) {
    // Where there is one core, or threads cannot be bound, both run where the system puts them.
    if let Some(core) = CORES.get(place) {
        core_affinity::set_for_current(*core);
    }
}

/// Binds the process of a server to the core that it was given, although its client's core is all that it sees.
fn bind_as_given() -> Result<(), String> {
    let Some(id) = env::var(CORE).ok().and_then(|id| id.parse().ok()) else {
        return Ok(());
    };
    let core = CoreId { id };
    core_affinity::set_for_current(core);
    let bound = core_affinity::get_core_ids().unwrap_or_default();
    if bound != [core] {
        return Err(format!(
            "the server is bound to {bound:?}, and not to {core:?}"
        ));
    }
    Ok(())
}

/// A runtime of one thread: the caller's.
pub(super) fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system gives a poller")
}

async fn stay_busy() {
    loop {
        tokio::task::yield_now().await;
    }
}

fn config(contender: Contender) -> Config {
    let mut config = Config::default();
    config.busy_poll = contender.is_busy();
    config
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("loopback can be listened on");
    let address = listener.local_addr().expect("it is bound").to_string();
    (listener, address)
}

/// Starts a server, and returns its address and what keeps it.
async fn start(contender: Contender) -> (String, Option<Transport>) {
    match contender {
        Contender::Raw | Contender::RawBusy => {
            let (listener, address) = listener().await;
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("a client connects");
                stream.set_nodelay(true).expect("TCP has it");
                let mut buffer = vec![0; READ_BYTES];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await
                    && stream.write_all(&buffer[..read]).await.is_ok()
                {}
            });
            if contender.is_busy() {
                tokio::spawn(stay_busy());
            }
            (address, None)
        }
        Contender::Ours | Contender::OursBusy => {
            let router = Router::new().inline("vm", "status", |message, reply| {
                reply.put_slice(message.payload());
                Ok(())
            });
            let server =
                Transport::builder(ours::SERVER, tls::CLUSTER, Security::InsecurePlaintext)
                    .router(router)
                    .config(config(contender))
                    .listen("127.0.0.1:0");
            let server = server.start().await.expect("loopback can be listened on");
            let address = server.address().expect("it listens").to_owned();
            (address, Some(server))
        }
        Contender::Tonic | Contender::TonicBidi => (grpc::serve(false, Arc::default()).await, None),
        Contender::Tarpc => {
            let (listener, address) = listener().await;
            peers::tarpc_serve(listener);
            (address, None)
        }
    }
}

/// If this process was started to be a server, it serves until its standard input ends, and `true` is returned then.
pub(crate) fn served() -> bool {
    let Ok(name) = env::var(SERVE) else {
        return false;
    };
    let found = Contender::ALL.into_iter().find(|it| it.name() == name);
    let Some(contender) = found else {
        eprintln!("{SERVE} is {name}, which is none of the contenders");
        return true;
    };
    if let Err(error) = bind_as_given() {
        eprintln!("{error}");
        return true;
    }
    std::thread::spawn(|| {
        let mut line = String::new();
        let _ = io::stdin().read_line(&mut line);
        std::process::exit(0);
    });
    runtime().block_on(async {
        let (address, _server) = start(contender).await;
        println!("{address}");
        let _ = io::stdout().flush();
        std::future::pending::<()>().await;
    });
    true
}

/// A server's process, which ends with this.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(contender: Contender) -> Result<Self, String> {
        let text = |error: io::Error| format!("cannot start a server: {error}");
        let mut command = Command::new(env::current_exe().map_err(text)?);
        if let Some(core) = CORES.get(SERVER_PLACE) {
            command.env(CORE, core.id.to_string());
        }
        let mut process = command
            .env(SERVE, contender.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(text)?;
        let mut address = String::new();
        if let Some(out) = process.stdout.take() {
            BufReader::new(out).read_line(&mut address).map_err(text)?;
        }
        let server = Self {
            process,
            address: address.trim().to_owned(),
        };
        if server.address.is_empty() {
            return Err(format!("the server of {} has ended", contender.name()));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `in_flight` messages in a write, and as many read.
fn raw(runtime: Runtime, address: &str, in_flight: u64) -> Run {
    let stream = runtime.block_on(TcpStream::connect(address));
    let mut stream = stream.expect("somebody listens");
    stream.set_nodelay(true).expect("TCP has it");
    let messages = vec![0x5A; in_flight as usize * MESSAGE_BYTES];
    let mut replies = messages.clone();
    Box::new(move |iters| {
        let begin = std::time::Instant::now();
        runtime.block_on(async {
            for _ in 0..iters.div_ceil(in_flight) {
                stream.write_all(&messages).await.expect("it lives");
                stream.read_exact(&mut replies).await.expect("it lives");
            }
        });
        begin.elapsed()
    })
}

fn client(contender: Contender, address: &str, in_flight: u64) -> Run {
    let runtime = runtime();
    let callers = in_flight as usize;
    match contender {
        Contender::Raw => raw(runtime, address, in_flight),
        Contender::RawBusy => {
            runtime.spawn(stay_busy());
            raw(runtime, address, in_flight)
        }
        Contender::Ours | Contender::OursBusy => {
            let builder =
                Transport::builder(ours::CLIENT, tls::CLUSTER, Security::InsecurePlaintext)
                    .config(config(contender))
                    .peer(ours::SERVER, address);
            let client = runtime.block_on(builder.start());
            ours::calls(runtime, &client.expect("a client needs nothing"), callers)
        }
        Contender::Tonic => {
            let channel = runtime.block_on(grpc::dial(false, address));
            grpc::unary_over(runtime, &channel, callers)
        }
        Contender::TonicBidi => peers::bidi_over(runtime, address, callers),
        Contender::Tarpc => peers::tarpc_over(runtime, address, callers),
    }
}

/// Nanoseconds per call in one turn of a contender.
fn turn(contender: Contender, in_flight: u64, time: Duration) -> Result<f64, String> {
    let server = Server::start(contender)?;
    let mut run = client(contender, &server.address, in_flight);
    let mut iters = in_flight.max(100);
    // Grows until it takes a tenth of the time, which also warms up.
    while run(iters) < time / 10 {
        iters *= 2;
    }
    let took = run(iters * 10);
    Ok(took.as_nanos() as f64 / (iters * 10) as f64)
}

/// The medians of several turns, the contenders in turn.
fn medians(
    contenders: &[Contender],
    in_flight: u64,
    depth: Depth,
) -> Result<Vec<(Contender, f64)>, String> {
    bind(0);
    let (turns, time) = match depth {
        Depth::Quick => (1, Duration::from_millis(60)),
        Depth::Full => (5, Duration::from_millis(600)),
    };
    let part: Vec<Contender> = contenders
        .iter()
        .copied()
        .filter(|contender| cfg!(feature = "peers") || !contender.is_peer())
        .collect();
    let mut times = vec![Vec::new(); part.len()];
    for _ in 0..turns {
        for (contender, times) in part.iter().zip(&mut times) {
            times.push(turn(*contender, in_flight, time)?);
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    Ok(part
        .into_iter()
        .zip(times.into_iter().map(median))
        .collect())
}

/// One figure for each, and how many times as long as `one` the others take.
fn figures(times: &[(Contender, f64)], ratios: &[(Contender, Contender, Bound)]) -> Vec<Figure> {
    let of = |wanted: Contender| {
        let found = times.iter().find(|(contender, _)| *contender == wanted);
        found.map(|(_, time)| *time)
    };
    let mut figures: Vec<Figure> = times
        .iter()
        .map(|(contender, time)| Figure::new(contender.name(), *time, Unit::Nanoseconds))
        .collect();
    for (slower, faster, bound) in ratios {
        if let (Some(slower_time), Some(faster_time)) = (of(*slower), of(*faster)) {
            let name = format!("{} / {}", slower.name(), faster.name());
            let ratio = Figure::new(name, slower_time / faster_time, Unit::Ratio);
            figures.push(ratio.expected(*bound));
        }
    }
    figures
}

/// Ours beside the system's own, and tonic.
pub(super) fn two_process<const IN_FLIGHT: u64>(depth: Depth) -> Result<Vec<Figure>, String> {
    use Contender::{Ours, Raw, Tonic};
    let times = medians(&[Raw, Ours, Tonic], IN_FLIGHT, depth)?;
    let mut ratios = Vec::new();
    match IN_FLIGHT {
        64 => {
            ratios.push((Ours, Raw, Bound::AtMost(1.15)));
            ratios.push((Tonic, Ours, Bound::AtLeast(10.0)));
        }
        512 => ratios.push((Ours, Raw, Bound::AtMost(1.8))),
        _ => {}
    }
    Ok(figures(&times, &ratios))
}

/// The sleeping mode and the busy one; at 64 calls others, too.
pub(super) fn busy<const IN_FLIGHT: u64>(depth: Depth) -> Result<Vec<Figure>, String> {
    use Contender::{Ours, OursBusy, RawBusy, Tarpc, TonicBidi};
    if IN_FLIGHT == 1 {
        let times = medians(&[RawBusy, Ours, OursBusy], IN_FLIGHT, depth)?;
        return Ok(figures(&times, &[(Ours, OursBusy, Bound::AtLeast(6.0))]));
    }
    let part = [RawBusy, Ours, OursBusy, TonicBidi, Tarpc];
    let times = medians(&part, IN_FLIGHT, depth)?;
    let ratios = [
        (TonicBidi, OursBusy, Bound::AtLeast(2.0)),
        (Tarpc, OursBusy, Bound::AtLeast(8.0)),
    ];
    Ok(figures(&times, &ratios))
}
