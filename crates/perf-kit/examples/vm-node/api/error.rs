//! Errors as clients see them: a status, a code for programs, and a sentence that says what to do.

use std::time::Duration;

use axum::extract::Request;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::answer::Refusal;
use crate::inventory::command::{Outcome, Size};

/// What is answered instead of what was asked for.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// Where to ask instead.
    leader: Option<String>,
}

/// The leader's address, on its way to the header `Location`.
#[derive(Clone)]
struct Leader(String);

#[derive(Serialize)]
struct Body<'a> {
    error: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<&'a str>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            leader: None,
        }
    }

    /// Not JSON, or not the right one.
    pub(super) fn malformed(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message)
    }

    /// JSON that says something impossible.
    pub(super) fn invalid(message: &str) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message)
    }

    pub(super) fn no_room(size: Size) -> Self {
        let Size {
            vcpus,
            memory_mib,
            disk_gib,
        } = size;
        Self::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "no_room",
            format!(
                "no host has {vcpus} vCPUs, {memory_mib} MiB of memory and {disk_gib} GiB of disk left: \
                 ask for less, delete VMs, or add a member"
            ),
        )
    }

    pub(super) fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "the body is longer than 64 KiB, and no request needs that much",
        )
    }

    pub(super) fn long_target(most: usize) -> Self {
        Self::new(
            StatusCode::URI_TOO_LONG,
            "long_target",
            format!(
                "the path with its query is longer than {most} bytes, and no route needs that much"
            ),
        )
    }

    pub(super) fn long_headers(most: usize) -> Self {
        Self::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "long_headers",
            format!("the headers are longer than {most} bytes, and no request needs that much"),
        )
    }

    pub(super) fn slow_body(most: Duration) -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "slow_body",
            format!(
                "the body did not come within {} s: send it at once",
                most.as_secs()
            ),
        )
    }

    pub(super) fn foreign_origin() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "foreign_origin",
            "a page of another site asked for a change: only this node's own page may, or a program without the header `Origin`",
        )
    }

    pub(super) fn no_route() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no_route",
            "there is nothing here; the routes are /, /vms, /vms/{name}, /vms/{name}/start, /vms/{name}/stop, \
             /status, /metrics, /healthz, /members and /members/{id}",
        )
    }

    pub(super) fn wrong_method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "wrong_method",
            "this route does not answer that method; the header `Allow` says which it answers",
        )
    }

    pub(super) fn no_leader() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no_leader",
            "no leader is known: try again after an election timeout",
        )
    }

    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        let message = format!("this is a defect: {error}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        match refusal {
            Refusal::NotLeader(Some(leader)) => Self {
                leader: Some(leader),
                ..Self::new(
                    StatusCode::TEMPORARY_REDIRECT,
                    "not_leader",
                    "another node leads: send the request there",
                )
            },
            Refusal::NotLeader(None) => Self::no_leader(),
            Refusal::Busy(what) => Self::new(
                unavailable,
                "busy",
                format!("{what}: try again after a moment"),
            ),
            Refusal::NoQuorum(why) => Self::new(
                unavailable,
                "no_quorum",
                format!("{why}: nothing was done; try again when a majority of the nodes is up"),
            ),
            Refusal::OutcomeUnknown(why) => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "outcome_unknown",
                format!("{why}: it may have been done or not; ask again with the same request id"),
            ),
            Refusal::Stopped(why) => Self::new(
                unavailable,
                "stopped",
                format!("this node has stopped ({why}): ask another one"),
            ),
            Refusal::Refused(why) => Self::new(StatusCode::CONFLICT, "refused", why),
            Refusal::UnknownMember(id) => Self::new(
                StatusCode::NOT_FOUND,
                "unknown_member",
                format!("there is no member {id}: `GET /members` lists those there are"),
            ),
        }
    }
}

impl From<Outcome> for ApiError {
    /// For outcomes that are none that was asked for.
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Unknown(name) => Self::new(
                StatusCode::NOT_FOUND,
                "unknown_vm",
                format!("there is no VM `{name}`: `GET /vms` lists those there are"),
            ),
            Outcome::Exists(name) => Self::new(
                StatusCode::CONFLICT,
                "exists",
                format!("there is a VM `{name}` already: choose another name, or delete it first"),
            ),
            Outcome::NoRoom(host) => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "no_room",
                format!("neither host {host} nor another one has room for it"),
            ),
            Outcome::Malformed(why) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                format!("the log has what this node does not understand ({why}): update it"),
            ),
            Outcome::Reused(id) => Self::new(
                StatusCode::CONFLICT,
                "reused",
                format!(
                    "the request id `{id}` was used for another request: nothing was done; choose a new one"
                ),
            ),
            Outcome::TooOld(id) => Self::new(
                StatusCode::CONFLICT,
                "too_old",
                format!(
                    "the request id `{id}` has a number that is not above the newest one of its client, and its answer is not kept any more: \
                     nothing was done now; look what became of it, and ask with a higher number"
                ),
            ),
            Outcome::UserDataFull(bytes_max) => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "user_data_full",
                format!(
                    "the VMs of one Raft group may have {bytes_max} bytes of user data together: \
                     shorten it, or delete VMs"
                ),
            ),
            Outcome::OtherGroups(groups) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "other_groups",
                format!(
                    "the inventory is spread over {groups} groups, and this node was started with another count: \
                     nothing was done; start it with `--groups {groups}`"
                ),
            ),
            Outcome::Vm(_)
            | Outcome::Host(_)
            | Outcome::HostExists(_)
            | Outcome::UnknownHost(_) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "the request id was used for another kind of request: choose a new one",
            ),
        }
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        let text = rejection.body_text();
        Self::malformed(&format!(
            "the path is not what was expected: {}",
            shortened(&text)
        ))
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        let text = rejection.body_text();
        Self::malformed(&format!(
            "the query is not what was expected: {}",
            shortened(&text)
        ))
    }
}

/// Its beginning: what a client sent may be part of it, and need not be sent back as a whole.
pub(super) fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        let status = rejection.status();
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::too_large();
        }
        Self::new(status, "malformed", rejection.body_text())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Body {
            error: self.code,
            message: &self.message,
            leader: self.leader.as_deref(),
        };
        let text = serde_json::to_vec(&body).unwrap_or_default();
        let json = HeaderValue::from_static("application/json");
        let mut response = (self.status, [(header::CONTENT_TYPE, json)], text).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(leader) = self.leader {
            response.extensions_mut().insert(Leader(leader));
        }
        response
    }
}

/// Adds the place of the same path at the leader to answers that name one, since a redirect needs the whole.
pub(super) async fn add_location(request: Request, next: Next) -> Response {
    let uri = request.uri().clone();
    let mut response = next.run(request).await;
    if let Some(Leader(leader)) = response.extensions_mut().remove::<Leader>() {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        if let Ok(location) = HeaderValue::try_from(format!("http://{leader}{path}")) {
            response.headers_mut().insert(header::LOCATION, location);
        }
    }
    response
}
