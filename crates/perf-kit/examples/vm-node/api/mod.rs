//! The HTTP interface.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Bytes, HttpBody as _};
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
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

pub(crate) use check::USER_DATA_BYTES_MAX;
use error::ApiError;

/// Longest body that is read. The longest request that makes sense is some hundred bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// VMs in a page without `limit`, and at most.
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1000;
/// How long a body may take to come.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes of a path with its query, and of all headers. No request needs that much.
const TARGET_BYTES_MAX: usize = 2048;
const HEADER_BYTES_MAX: usize = 16 * 1024;
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
        .layer(middleware::from_fn(refuse_foreign))
        .with_state(Arc::new(backend))
}

/// Refuses changes that a page of another site asks a visitor's browser for. Browsers name the page's site in `Origin`.
async fn refuse_foreign(request: Request, next: Next) -> Response {
    if !request.method().is_safe() && is_foreign(request.headers()) {
        return ApiError::foreign_origin().into_response();
    }
    next.run(request).await
}

fn is_foreign(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN).map(HeaderValue::as_bytes) else {
        return false;
    };
    let site = origin.strip_prefix(b"http://");
    let site = site.or_else(|| origin.strip_prefix(b"https://"));
    site.is_none() || site != headers.get(header::HOST).map(HeaderValue::as_bytes)
}

/// Answers a request that is too long in any way. One that announces a long body is answered before the body comes; one that does
/// not say is cut off by the limit, and one that comes too slowly by the time.
async fn refuse_long(request: Request, next: Next) -> Response {
    let target = request.uri().path_and_query();
    if target.is_some_and(|target| target.as_str().len() > TARGET_BYTES_MAX) {
        return ApiError::long_target(TARGET_BYTES_MAX).into_response();
    }
    let headers = request.headers().iter();
    let header_bytes: usize = headers
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if header_bytes > HEADER_BYTES_MAX {
        return ApiError::long_headers(HEADER_BYTES_MAX).into_response();
    }
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > BODY_BYTES_MAX) {
        return ApiError::too_large().into_response();
    }
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let whole = axum::body::to_bytes(body, BODY_BYTES_MAX);
    match tokio::time::timeout(BODY_TIME_MAX, whole).await {
        Ok(Ok(body)) => {
            let request = Request::from_parts(head, axum::body::Body::from(body));
            next.run(request).await
        }
        Ok(Err(_)) => ApiError::too_large().into_response(),
        Err(_) => ApiError::slow_body(BODY_TIME_MAX).into_response(),
    }
}

type Shared = State<Arc<Backend>>;
type Body = Result<Bytes, BytesRejection>;
type PathResult<T> = Result<Path<T>, PathRejection>;

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
    /// What the VM reads when it starts.
    #[serde(default)]
    user_data: String,
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
#[serde(default, deny_unknown_fields)]
struct Freshness {
    /// `true`: what this node has, which may be old.
    stale: bool,
}

/// Which VMs are asked for, and how fresh they have to be.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PageQuery {
    /// As in [`Freshness`].
    stale: bool,
    /// How many at most.
    limit: usize,
    /// Those behind this name: `next` of the page before.
    after: Option<String>,
}

impl Default for PageQuery {
    fn default() -> Self {
        Self {
            stale: false,
            limit: PAGE_DEFAULT,
            after: None,
        }
    }
}

/// Waits until this node has what was acknowledged before the call, unless an old state will do.
async fn wait_unless(stale: bool, backend: &Backend, vm: Option<&str>) -> Result<(), ApiError> {
    if !stale {
        backend.barrier(vm).await?;
    }
    Ok(())
}

/// A page of VMs by name, as they were at one moment. Pages that follow each other are of different moments.
#[derive(Debug, Serialize)]
struct VmList {
    /// VMs in all.
    count: usize,
    vms: Vec<Listed>,
    /// What to give as `after` for the next page; `null` on the last one.
    next: Option<String>,
}

/// A VM in a list. What identifies the user data is computed from what this node holds.
#[derive(Debug, Serialize)]
struct Listed {
    #[serde(flatten)]
    vm: Arc<Vm>,
    user_data_bytes: usize,
    user_data_crc32: u32,
}

impl From<Arc<Vm>> for Listed {
    fn from(vm: Arc<Vm>) -> Self {
        Self {
            user_data_bytes: vm.user_data.len(),
            user_data_crc32: crc32fast::hash(&vm.user_data),
            vm,
        }
    }
}

/// A VM alone.
#[derive(Debug, Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    vm: &'a Vm,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_data: &'a str,
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
    check::user_data(&new.user_data)?;
    let host = backend.place(&new.name, size, &new.apart, new.strategy);
    let host = host.await;
    let create = Create {
        name: new.name,
        size,
        apart: new.apart,
        // Without a host it is proposed as well: this node may be behind, and the answer to a repeated request is in the log.
        host: host.unwrap_or(0),
        user_data: Bytes::from(new.user_data),
    };
    match backend.write(request_id, Action::Create(create)).await? {
        Outcome::Vm(vm) => Ok(vm),
        Outcome::NoRoom(_) => Err(ApiError::no_room(size)),
        other => Err(other.into()),
    }
}

async fn start_vm(
    backend: Shared,
    name: PathResult<String>,
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
    name: PathResult<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    change(backend, name, &headers, body, Operation::Stop, Action::Stop).await
}

async fn delete_vm(
    backend: Shared,
    name: PathResult<String>,
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
    name: PathResult<String>,
    headers: &HeaderMap,
    body: Body,
    operation: Operation,
    action: fn(String) -> Action,
) -> Result<Response, ApiError> {
    let start = Instant::now();
    let result = async {
        let Path(name) = name?;
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
    name: PathResult<String>,
    freshness: Result<Query<Freshness>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Path(name) = name?;
    let Query(freshness) = freshness?;
    check::name("name", &name)?;
    wait_unless(freshness.stale, &backend, Some(&name)).await?;
    match backend.vm(&name).await {
        Some(vm) => {
            let user_data = std::str::from_utf8(&vm.user_data);
            let user_data = user_data.map_err(|error| ApiError::internal(&error))?;
            let vm = &*vm;
            Ok(json(StatusCode::OK, &Whole { vm, user_data }))
        }
        None => Err(Outcome::Unknown(name).into()),
    }
}

async fn list_vms(
    State(backend): Shared,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    if !(1..=PAGE_MAX).contains(&query.limit) {
        return Err(ApiError::invalid(&format!(
            "`limit` is {}; it must be from 1 to {PAGE_MAX}",
            query.limit
        )));
    }
    if let Some(after) = &query.after {
        check::name("after", after)?;
    }
    wait_unless(query.stale, &backend, None).await?;
    let page = backend.page(query.after.as_deref(), query.limit).await;
    let last = page.vms.last().filter(|_| !page.is_last);
    let list = VmList {
        count: page.count,
        next: last.map(|vm| vm.name.clone()),
        vms: page.vms.into_iter().map(Listed::from).collect(),
    };
    Ok(json(StatusCode::OK, &list))
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

async fn remove_member(State(backend): Shared, id: PathResult<u64>) -> Result<Response, ApiError> {
    let Path(id) = id?;
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
