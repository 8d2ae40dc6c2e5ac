//! The HTTP interface.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use perf_kit::metrics::node::Operation;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::inventory::command::{Action, Create, Host, Outcome, Vm};
use crate::placement::Strategy;

mod check;
mod error;

use error::ApiError;

/// Longest body that is read. The longest request that makes sense is some hundred bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// How often a placement is chosen anew when the host is full by the time the command is applied.
const PLACEMENTS_MAX: usize = 3;
/// The page.
const PAGE: &str = include_str!("page.html");

/// The routes.
pub(crate) fn router(backend: Backend) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/vms", post(create_vm).get(list_vms))
        .route("/vms/{name}", get(get_vm).delete(delete_vm))
        .route("/vms/{name}/start", post(start_vm))
        .route("/vms/{name}/stop", post(stop_vm))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/members", post(add_member).get(list_members))
        .route("/members/{id}", delete(remove_member))
        .fallback(|| async { ApiError::no_route() })
        .method_not_allowed_fallback(|| async { ApiError::wrong_method() })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(error::add_location))
        .layer(middleware::from_fn(refuse_long))
        .with_state(Arc::new(backend))
}

/// Answers a request that announces a long body before the body comes; one that does not say is cut off by the limit.
async fn refuse_long(request: Request, next: Next) -> Response {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > BODY_BYTES_MAX) {
        return ApiError::too_large().into_response();
    }
    next.run(request).await
}

type Shared = State<Arc<Backend>>;
type Body = Result<Bytes, BytesRejection>;

/// The body of `POST /vms`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewVm {
    name: String,
    vcpus: u32,
    memory_mib: u32,
    disk_gib: u32,
    /// VMs of one group are kept on different hosts while there are others.
    #[serde(default)]
    apart: String,
    #[serde(default)]
    strategy: Strategy,
    request_id: Option<String>,
}

/// The body of the other writes; all of it may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    request_id: Option<String>,
}

/// The body of `POST /members`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMember {
    id: u64,
    http: String,
    raft: String,
    vcpus: u32,
    memory_mib: u32,
    disk_gib: u32,
}

/// How fresh a read has to be.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Freshness {
    /// `true`: what this node has, which may be old.
    stale: bool,
}

impl Freshness {
    async fn wait(&self, backend: &Backend) -> Result<(), ApiError> {
        if !self.stale {
            backend.barrier().await?;
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct VmList {
    count: usize,
    vms: Vec<Arc<Vm>>,
}

async fn page() -> Response {
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    ([(header::CONTENT_TYPE, html)], PAGE).into_response()
}

async fn create_vm(
    State(backend): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let start = Instant::now();
    let result = try_create(&backend, &headers, body).await;
    backend.record(Operation::Create, result.is_ok(), start.elapsed());
    let vm = result?;
    let location = HeaderValue::try_from(format!("/vms/{}", vm.name)).ok();
    let mut response = json(StatusCode::CREATED, &vm);
    if let Some(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

async fn try_create(backend: &Backend, headers: &HeaderMap, body: Body) -> Result<Vm, ApiError> {
    let new: NewVm = check::json(&body?)?;
    let request_id = check::request_id(headers, new.request_id)?;
    check::name("name", &new.name)?;
    let size = check::size(new.vcpus, new.memory_mib, new.disk_gib)?;
    if !new.apart.is_empty() {
        check::name("apart", &new.apart)?;
    }
    for attempt in 0..PLACEMENTS_MAX {
        let host = backend.place(size, &new.apart, new.strategy).await;
        let create = Create {
            name: new.name.clone(),
            size,
            apart: new.apart.clone(),
            host: host.unwrap_or(0),
        };
        // Without a host it is proposed as well: an answer from the log tells a repeated request from a new one,
        // and this node may be behind. Each choice of a host is a request of its own, or the first refusal
        // would be remembered as the answer to all.
        let id = match attempt {
            0 => request_id.clone(),
            _ => format!("{request_id}/{attempt}"),
        };
        match backend.write(id, Action::Create(create)).await? {
            Outcome::Vm(vm) => return Ok(vm),
            Outcome::NoRoom(_) => {}
            other => return Err(other.into()),
        }
    }
    Err(ApiError::no_room(size))
}

async fn start_vm(
    backend: Shared,
    name: Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    change(
        backend,
        name,
        &headers,
        body,
        Operation::Start,
        Action::Start,
    )
    .await
}

async fn stop_vm(
    backend: Shared,
    name: Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    change(backend, name, &headers, body, Operation::Stop, Action::Stop).await
}

async fn delete_vm(
    backend: Shared,
    name: Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    change(
        backend,
        name,
        &headers,
        body,
        Operation::Delete,
        Action::Delete,
    )
    .await
}

/// A change of one VM.
async fn change(
    State(backend): Shared,
    Path(name): Path<String>,
    headers: &HeaderMap,
    body: Body,
    operation: Operation,
    action: fn(String) -> Action,
) -> Result<Response, ApiError> {
    let start = Instant::now();
    let result = async {
        let body = body?;
        let options: Options = match body.is_empty() {
            true => Options::default(),
            false => check::json(&body)?,
        };
        let request_id = check::request_id(headers, options.request_id)?;
        check::name("name", &name)?;
        match backend.write(request_id, action(name)).await? {
            Outcome::Vm(vm) => Ok(vm),
            other => Err(ApiError::from(other)),
        }
    }
    .await;
    backend.record(operation, result.is_ok(), start.elapsed());
    Ok(json(StatusCode::OK, &result?))
}

async fn get_vm(
    State(backend): Shared,
    Path(name): Path<String>,
    Query(freshness): Query<Freshness>,
) -> Result<Response, ApiError> {
    check::name("name", &name)?;
    freshness.wait(&backend).await?;
    match backend.vm(&name).await {
        Some(vm) => Ok(json(StatusCode::OK, &vm)),
        None => Err(Outcome::Unknown(name).into()),
    }
}

async fn list_vms(
    State(backend): Shared,
    Query(freshness): Query<Freshness>,
) -> Result<Response, ApiError> {
    freshness.wait(&backend).await?;
    let vms = backend.vms().await;
    let count = vms.len();
    Ok(json(StatusCode::OK, &VmList { count, vms }))
}

/// Of this node alone and at once, for whoever watches; readable by pages that other nodes served.
async fn status(State(backend): Shared) -> Response {
    let mut response = json(StatusCode::OK, &backend.status().await);
    response.headers_mut().insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    response
}

async fn metrics(State(backend): Shared) -> Response {
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, text)], backend.metrics()).into_response()
}

async fn healthz(State(backend): Shared) -> Response {
    if backend.is_healthy().await {
        json(StatusCode::OK, &serde_json::json!({ "healthy": true }))
    } else {
        ApiError::no_leader().into_response()
    }
}

async fn add_member(State(backend): Shared, body: Body) -> Result<Response, ApiError> {
    let new: NewMember = check::json(&body?)?;
    if new.id == 0 {
        return Err(ApiError::invalid("`id` must be 1 or more"));
    }
    check::address("http", &new.http)?;
    check::address("raft", &new.raft)?;
    let host = Host {
        id: new.id,
        http: new.http,
        raft: new.raft,
        size: check::host_size(new.vcpus, new.memory_mib, new.disk_gib)?,
        removed: false,
    };
    backend.add_member(host.clone()).await?;
    Ok(json(StatusCode::OK, &host))
}

async fn list_members(State(backend): Shared) -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &backend.members()?))
}

async fn remove_member(State(backend): Shared, Path(id): Path<u64>) -> Result<Response, ApiError> {
    backend.remove_member(id).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({ "removed": id })))
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let json = HeaderValue::from_static("application/json");
            (status, [(header::CONTENT_TYPE, json)], body).into_response()
        }
        Err(error) => ApiError::internal(&error).into_response(),
    }
}
