//! What clients do: each makes, starts, reads, stops and deletes VMs of its own, and now and then works on names that
//! several of them share. Every request has an id and is repeated with it until it is answered.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;

use super::client::{self, Client, ErrorReply, VmReply};
use super::history::{self, Operation, Request, Verdict};
use super::nodes::Nodes;
use super::{Options, second};
use crate::groups::group_of;

/// One in so many requests goes to a shared name.
const SHARED_EVERY: u32 = 8;
/// One in so many reads under chaos does not ask the leader.
const ELSEWHERE_EVERY: u32 = 3;
/// Shared names at a time, and operations on each before the next one takes its place.
const SHARED_NAMES: usize = 8;
const SHARED_OPERATIONS: u64 = 120;
/// One in so many VMs is not deleted, to be looked for at the end; and how many at the most.
const KEPT_EVERY: u64 = 4;
const KEPT_MAX: usize = 20_000;
/// Bytes of user data that the VMs have together that are not deleted.
const KEPT_BYTES_MAX: usize = 8 << 20;
/// One VM in so many has no user data, and one a few bytes; the others have up to the longest.
const USER_DATA_KINDS: u32 = 4;
const USER_DATA_SHORT_BYTES: usize = 256;
/// What a VM takes of a state beside its user data, and an answer that is remembered; and how many answers are. More
/// than both take in this load.
const VM_BYTES: usize = 256;
const ANSWER_BYTES: usize = 256;
const ANSWERS_MAX: usize = 100_000;
/// How long a request is repeated after the end of the load before its outcome counts as unknown.
const GRACE: Duration = Duration::from_secs(12);
/// How long clients wait for an answer under chaos: an election timeout. Then they ask another node with the same id, as a paused
/// leader does not say that it is one no more.
const IMPATIENCE: Duration = Duration::from_millis(500);
/// Wait before a request is repeated.
const RETRY: Duration = Duration::from_millis(20);

/// All clients' work.
pub(super) struct Load {
    /// Where clients look for a leader.
    addresses: Mutex<Vec<String>>,
    clients: usize,
    seed: u64,
    is_chaos: bool,
    user_data_bytes: usize,
    began: Instant,
    acknowledged: AtomicU64,
    /// Bytes of user data that were acknowledged.
    written_bytes: AtomicU64,
    /// Writes that began from this time on are waited for; 0 for none.
    watched_from_ns: AtomicU64,
    /// By Raft group.
    watched_ack_ns: Vec<AtomicU64>,
    shared_counts: Vec<AtomicU64>,
    found: Mutex<Found>,
}

/// What all clients have seen.
struct Found {
    shared: HashMap<String, Vec<Operation>>,
    /// What must be there at the end, and what must not: by name, whether it runs.
    expected: HashMap<String, Option<bool>>,
    /// User data of those of them that are there.
    kept_bytes: usize,
    /// Names of which nobody knows.
    unknown: u64,
    wrong: Vec<String>,
    latencies: Histogram<u64>,
}

/// What was checked at the end.
#[derive(Clone, Debug, Default)]
pub(super) struct Checks {
    pub(super) histories: usize,
    pub(super) operations: usize,
    pub(super) expected: usize,
    pub(super) unknown: u64,
    /// Names whose histories are too entangled to be judged by one of the checkers.
    pub(super) undecided: usize,
    /// Everything that should not be, in sentences.
    pub(super) wrong: Vec<String>,
}

/// The outcome of a request, as far as a client can know it.
struct Outcome {
    is_done: Option<bool>,
    vm: Option<VmReply>,
    start_ns: u64,
    end_ns: u64,
}

impl Load {
    pub(super) fn new(addresses: Vec<String>, options: &Options) -> Self {
        Self {
            addresses: Mutex::new(addresses),
            clients: options.clients,
            seed: options.seed,
            is_chaos: options.chaos,
            user_data_bytes: options.user_data_bytes,
            began: Instant::now(),
            acknowledged: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            watched_from_ns: AtomicU64::new(0),
            watched_ack_ns: (0..options.groups).map(|_| AtomicU64::new(0)).collect(),
            shared_counts: (0..SHARED_NAMES).map(|_| AtomicU64::new(0)).collect(),
            found: Mutex::new(Found {
                shared: HashMap::new(),
                expected: HashMap::new(),
                kept_bytes: 0,
                unknown: 0,
                wrong: Vec::new(),
                latencies: Histogram::new(3).expect("three digits are allowed"),
            }),
        }
    }

    /// Starts the clients, which begin no request after `end`.
    pub(super) fn start(self: &Arc<Self>, end: Instant) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let attempt_max = if self.is_chaos {
            IMPATIENCE
        } else {
            client::ATTEMPT_MAX
        };
        for number in 0..self.clients {
            let worker = Worker {
                load: Arc::clone(self),
                number,
                client: Client::new(self.address(number)).with_attempts_of(attempt_max),
                reader: Client::new(self.address(number + 1)).with_attempts_of(attempt_max),
                random: SmallRng::seed_from_u64(self.seed ^ number as u64),
                end,
                requests: 0,
                latencies: Histogram::new(3).expect("three digits are allowed"),
            };
            tasks.spawn(worker.run());
        }
        tasks
    }

    /// Waits for the requests that are under way.
    pub(super) async fn finish(&self, mut clients: JoinSet<()>) -> Result<()> {
        while let Some(ended) = clients.join_next().await {
            ended.context("a client failed")?;
        }
        Ok(())
    }

    /// Other nodes are members from now on.
    pub(super) fn set_addresses(&self, addresses: Vec<String>) {
        *self.addresses.lock().expect("nobody panics with it") = addresses;
    }

    /// One of the members' addresses.
    fn address(&self, number: usize) -> String {
        let addresses = self.addresses.lock().expect("nobody panics with it");
        addresses[number % addresses.len()].clone()
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub(super) fn latencies(&self) -> Histogram<u64> {
        self.found().latencies.clone()
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found
            .lock()
            .expect("no client panics while it holds it")
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// From now on waits for the first acknowledged write in each Raft group that began later.
    pub(super) fn watch(&self) {
        for ack in &self.watched_ack_ns {
            ack.store(0, Ordering::Release);
        }
        self.watched_from_ns
            .store(self.now_ns().max(1), Ordering::Release);
    }

    /// How long it took until the last group had one, if all have.
    pub(super) fn watched(&self) -> Option<Duration> {
        let acks = self.watched_ack_ns.iter();
        let acks: Vec<u64> = acks.map(|ack| ack.load(Ordering::Acquire)).collect();
        let from = self.watched_from_ns.load(Ordering::Acquire);
        let last = acks.iter().max().filter(|_| !acks.contains(&0))?;
        Some(Duration::from_nanos(last.saturating_sub(from)))
    }

    fn note_ack(&self, name: &str, start_ns: u64, end_ns: u64) {
        let from = self.watched_from_ns.load(Ordering::Acquire);
        let group = group_of(name, self.watched_ack_ns.len() as u32);
        let ack = &self.watched_ack_ns[group as usize];
        if from > 0 && start_ns >= from && ack.load(Ordering::Relaxed) == 0 {
            // The first one stays.
            let _ = ack.compare_exchange(0, end_ns, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// The user data of a VM, by the seed and the name alone.
    fn user_data(&self, name: &str) -> String {
        user_data(self.seed, name, self.user_data_bytes)
    }

    /// Bytes of user data that were acknowledged.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// More bytes than the state of all VMs takes now, by what was asked for.
    pub(super) fn live_bytes(&self) -> u64 {
        let found = self.found();
        let kept = found.expected.values().flatten().count();
        let working = self.clients + SHARED_NAMES;
        let answers = usize::try_from(self.acknowledged()).unwrap_or(usize::MAX);
        let bytes = found.kept_bytes
            + kept * VM_BYTES
            + working * (self.user_data_bytes + VM_BYTES)
            + answers.min(ANSWERS_MAX) * ANSWER_BYTES;
        bytes as u64
    }

    /// What must be there from now on, and what must not.
    pub(super) fn kept(&self) -> HashMap<String, Option<bool>> {
        self.found().expected.clone()
    }

    /// Compares what each node has now with what must be there. A node that has not caught up waits until it has.
    pub(super) async fn verify(
        &self,
        nodes: &Nodes,
        kept: &HashMap<String, Option<bool>>,
    ) -> Result<()> {
        for (id, address) in nodes.ids().await.into_iter().zip(nodes.addresses().await) {
            let list = list(&mut Client::new(address)).await;
            let list = list.with_context(|| format!("cannot get the list of node {id}"))?;
            if let Some(wrong) = self.differences(id, &list, kept).into_iter().next() {
                bail!("after the fault: {wrong}");
            }
        }
        Ok(())
    }

    /// What of a node's list is not as it must be, in sentences.
    fn differences(
        &self,
        node: u64,
        list: &[VmReply],
        kept: &HashMap<String, Option<bool>>,
    ) -> Vec<String> {
        let there: HashMap<&str, &VmReply> = list.iter().map(|vm| (vm.name.as_str(), vm)).collect();
        let mut wrong = Vec::new();
        for (name, expected) in kept {
            let vm = there.get(name.as_str());
            let is = vm.map(|vm| vm.running);
            if is != *expected {
                wrong.push(format!(
                    "node {node}: `{name}` should be {}, and is {}",
                    in_words(*expected),
                    in_words(is)
                ));
            }
            let data = vm.map(|vm| (vm.user_data_bytes, vm.user_data_crc32));
            let right = || {
                let data = self.user_data(name);
                (data.len(), crc32fast::hash(data.as_bytes()))
            };
            if data.is_some_and(|data| data != right()) {
                wrong.push(format!(
                    "node {node}: `{name}` has other user data: {data:?}"
                ));
            }
        }
        wrong
    }

    /// Checks every shared name's history, and every node's list against what was acknowledged.
    pub(super) async fn check(&self, nodes: &Nodes) -> Result<Checks> {
        let mut checks = Checks::default();
        let mut lists = Vec::new();
        for (id, address) in nodes.ids().await.into_iter().zip(nodes.addresses().await) {
            let mut client = Client::new(address);
            let list = list(&mut client)
                .await
                .with_context(|| format!("cannot get the list of node {id}"))?;
            lists.push((id, list));
        }
        let found = self.found();
        checks.wrong.extend(found.wrong.iter().cloned());
        checks.unknown = found.unknown;
        for (name, operations) in &found.shared {
            checks.histories += 1;
            checks.operations += operations.len();
            let (ours, hint) = match history::order(operations) {
                Verdict::Ordered(order) => (Some(true), Some(order)),
                Verdict::None => (Some(false), None),
                Verdict::Undecided => (None, None),
            };
            let theirs = second::is_linearizable(operations, hint.as_deref());
            checks.undecided += usize::from(ours.is_none() || theirs.is_none());
            if ours == Some(false) || theirs == Some(false) {
                checks.wrong.push(format!(
                    "the {} answers about `{name}` have no order that explains them, say {}",
                    operations.len(),
                    match (ours, theirs) {
                        (Some(false), Some(false)) => "both checkers",
                        (Some(false), _) => "this project's checker",
                        _ => "the other checker",
                    }
                ));
            }
        }
        checks.expected = found.expected.len();
        for (id, list) in &lists {
            let wrong = self.differences(*id, list, &found.expected);
            checks.wrong.extend(wrong);
        }
        if let Some((first, rest)) = lists.split_first() {
            for other in rest.iter().filter(|other| other.1 != first.1) {
                checks.wrong.push(format!(
                    "nodes {} and {} have different inventories",
                    first.0, other.0
                ));
            }
        }
        Ok(checks)
    }
}

fn in_words(state: Option<bool>) -> &'static str {
    match state {
        None => "absent",
        Some(false) => "stopped",
        Some(true) => "running",
    }
}

/// A node that has just come back may have no leader yet.
async fn list(client: &mut Client) -> Result<Vec<VmReply>> {
    let start = Instant::now();
    loop {
        match client.list().await {
            Ok(list) => return Ok(list),
            Err(error) if start.elapsed() > GRACE => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// One client.
struct Worker {
    load: Arc<Load>,
    number: usize,
    /// Stays with the leader.
    client: Client,
    /// Stays where it is answered, mostly at a follower, for reads.
    reader: Client,
    random: SmallRng,
    end: Instant,
    requests: u64,
    latencies: Histogram<u64>,
}

impl Worker {
    async fn run(mut self) {
        let mut made = 0;
        while Instant::now() < self.end {
            self.own_vm(made).await;
            made += 1;
        }
        let mut found = self.load.found();
        found
            .latencies
            .add(&self.latencies)
            .expect("both have the same digits and grow");
    }

    /// A VM's life. Nobody else knows its name, so every answer is known in advance.
    async fn own_vm(&mut self, made: u64) {
        let name = format!("c{}-{made}", self.number);
        let bytes = self.load.user_data(&name).len();
        let has_room = {
            let found = self.load.found();
            found.expected.len() < KEPT_MAX && found.kept_bytes + bytes <= KEPT_BYTES_MAX
        };
        let is_kept = made.is_multiple_of(KEPT_EVERY) && has_room;
        let life = [
            (Request::Create, false),
            (Request::Start, true),
            (Request::Get, true),
            (Request::Stop, false),
            (Request::Delete, false),
        ];
        let mut state = None;
        for (request, is_running) in life {
            let is_last = request == Request::Stop && is_kept;
            if self.random.random_ratio(1, SHARED_EVERY) {
                self.shared().await;
            }
            let outcome = self.request(request, &name).await;
            let is_right = match (outcome.is_done, &outcome.vm) {
                (None, _) => {
                    self.load.found().unknown += 1;
                    return;
                }
                (Some(true), Some(vm)) if request == Request::Get => {
                    vm.running == is_running && vm.user_data == self.load.user_data(&name)
                }
                (Some(is_done), _) => is_done,
            };
            if !is_right {
                let wrong =
                    format!("`{name}`: {request:?} was answered as if it had not been made");
                self.load.found().wrong.push(wrong);
                return;
            }
            state = (request != Request::Delete).then_some(is_running);
            if is_last || Instant::now() >= self.end {
                break;
            }
        }
        // What is gone is only looked for where there is room to remember it.
        let mut found = self.load.found();
        if state.is_some() || found.expected.len() < KEPT_MAX {
            found.kept_bytes += if state.is_some() { bytes } else { 0 };
            found.expected.insert(name, state);
        }
    }

    /// Something about a VM that others work on too.
    async fn shared(&mut self) {
        let place = self.random.random_range(0..SHARED_NAMES);
        let count = self.load.shared_counts[place].fetch_add(1, Ordering::Relaxed);
        let name = format!("s{place}-{}", count / SHARED_OPERATIONS);
        let request = match self.random.random_range(0..8) {
            // A name that is left takes no room for ever.
            _ if count % SHARED_OPERATIONS == SHARED_OPERATIONS - 1 => Request::Delete,
            0 | 1 => Request::Create,
            2 => Request::Start,
            3 => Request::Stop,
            4 => Request::Delete,
            _ => Request::Get,
        };
        let outcome = self.request(request, &name).await;
        let data = outcome.vm.as_ref().map(|vm| &vm.user_data);
        if request == Request::Get && data.is_some_and(|data| *data != self.load.user_data(&name)) {
            let wrong = format!("`{name}` was read with other user data than it was made with");
            self.load.found().wrong.push(wrong);
        }
        let operation = Operation {
            request,
            is_done: outcome.is_done,
            saw_running: outcome.vm.is_some_and(|vm| vm.running),
            start_ns: outcome.start_ns,
            end_ns: outcome.end_ns,
        };
        let mut found = self.load.found();
        found.shared.entry(name).or_default().push(operation);
    }

    /// Sends a request, some reads not to the leader, until it is answered or hope is lost.
    async fn request(&mut self, request: Request, name: &str) -> Outcome {
        let is_elsewhere = request == Request::Get
            && self.load.is_chaos
            && self.random.random_ratio(1, ELSEWHERE_EVERY);
        if is_elsewhere {
            std::mem::swap(&mut self.client, &mut self.reader);
        }
        let outcome = self.repeat(request, name).await;
        if is_elsewhere {
            std::mem::swap(&mut self.client, &mut self.reader);
        }
        outcome
    }

    /// Sends a request, and again with the same id, until it is answered or hope is lost.
    async fn repeat(&mut self, request: Request, name: &str) -> Outcome {
        self.requests += 1;
        let id = format!("{}#{}", self.number, self.requests);
        let mut user_data_bytes = 0;
        let (method, path, body) = match request {
            Request::Create => {
                let data = self.load.user_data(name);
                user_data_bytes = data.len() as u64;
                let body = format!(
                    "{{\"name\":\"{name}\",\"vcpus\":1,\"memory_mib\":512,\"disk_gib\":4,\"request_id\":\"{id}\",\
                     \"user_data\":\"{data}\"}}"
                );
                (Method::POST, "/vms".to_owned(), body)
            }
            Request::Start => (Method::POST, format!("/vms/{name}/start"), with_id(&id)),
            Request::Stop => (Method::POST, format!("/vms/{name}/stop"), with_id(&id)),
            Request::Delete => (Method::DELETE, format!("/vms/{name}"), with_id(&id)),
            Request::Get => (Method::GET, format!("/vms/{name}"), String::new()),
        };
        let body = Bytes::from(body);
        let start_ns = self.load.now_ns();
        let start = Instant::now();
        loop {
            let answer = self
                .client
                .request(method.clone(), &path, body.clone())
                .await;
            if let Ok(answer) = answer {
                let is_done = match answer.status {
                    StatusCode::OK | StatusCode::CREATED => Some(true),
                    StatusCode::NOT_FOUND | StatusCode::CONFLICT => Some(false),
                    StatusCode::TEMPORARY_REDIRECT => {
                        let error: Option<ErrorReply> = serde_json::from_slice(&answer.body).ok();
                        if let Some(leader) = error.and_then(|error| error.leader)
                            && leader != self.client.address()
                        {
                            self.client.move_to(&leader);
                            continue;
                        }
                        None
                    }
                    // It knows no leader; another node may.
                    StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                        self.move_on();
                        None
                    }
                    _ => None,
                };
                if is_done.is_some() {
                    if is_done == Some(true) {
                        let written = &self.load.written_bytes;
                        written.fetch_add(user_data_bytes, Ordering::Relaxed);
                    }
                    return self.answered(request, name, &answer.body, is_done, start, start_ns);
                }
            } else {
                self.move_on();
            }
            if Instant::now() > self.end + GRACE {
                return Outcome {
                    is_done: None,
                    vm: None,
                    start_ns,
                    end_ns: u64::MAX,
                };
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Asks any of the members from now on.
    fn move_on(&mut self) {
        let next = self.random.random_range(0..usize::MAX);
        self.client.move_to(&self.load.address(next));
    }

    fn answered(
        &mut self,
        request: Request,
        name: &str,
        body: &[u8],
        is_done: Option<bool>,
        start: Instant,
        start_ns: u64,
    ) -> Outcome {
        let end_ns = self.load.now_ns();
        self.load.acknowledged.fetch_add(1, Ordering::Relaxed);
        if request != Request::Get {
            self.load.note_ack(name, start_ns, end_ns);
        }
        let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        // It grows by itself; only a time of centuries would not fit.
        let _ = self.latencies.record(us);
        Outcome {
            is_done,
            vm: serde_json::from_slice(body).ok(),
            start_ns,
            end_ns,
        }
    }
}

/// Text without anything that JSON would escape.
fn user_data(seed: u64, name: &str, bytes_max: usize) -> String {
    let own = seed ^ u64::from(crc32fast::hash(name.as_bytes()));
    let mut random = SmallRng::seed_from_u64(own);
    let most = match random.random_range(0..USER_DATA_KINDS) {
        0 => 0,
        1 => bytes_max.min(USER_DATA_SHORT_BYTES),
        _ => bytes_max,
    };
    let length = random.random_range(0..=most);
    (0..length)
        .map(|_| char::from(random.random_range(b'a'..=b'z')))
        .collect()
}

fn with_id(id: &str) -> String {
    format!("{{\"request_id\":\"{id}\"}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_a_function_of_seed_and_name_and_has_every_size() {
        let lengths: Vec<usize> = (0..1000)
            .map(|number| user_data(7, &format!("c0-{number}"), 16_384))
            .map(|data| data.len())
            .collect();
        assert_eq!(user_data(7, "c0-1", 16_384), user_data(7, "c0-1", 16_384));
        assert_ne!(user_data(7, "c0-1", 16_384), user_data(8, "c0-1", 16_384));
        assert!(lengths.iter().filter(|length| **length == 0).count() > 100);
        assert!(
            lengths
                .iter()
                .filter(|length| (1..=256).contains(*length))
                .count()
                > 100
        );
        assert!(lengths.iter().filter(|length| **length > 8192).count() > 100);
        assert!(lengths.iter().all(|length| *length <= 16_384));
        assert_eq!(user_data(7, "c0-1", 0), "");
    }
}
