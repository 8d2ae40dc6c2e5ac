//! What a request may say.

use axum::http::HeaderMap;
use serde::de::DeserializeOwned;

use super::error::{ApiError, shortened};
use crate::inventory::command::Size;

/// As in DNS labels, so that a name can be part of a host's.
const NAME_CHARS_MAX: usize = 63;
const REQUEST_ID_BYTES_MAX: usize = 64;
const VCPUS_MAX: u32 = 1024;
const MEMORY_MIB_MIN: u32 = 64;
/// 16 TiB.
const MEMORY_MIB_MAX: u32 = 16 * 1024 * 1024;
/// 1 PiB.
const DISK_GIB_MAX: u32 = 1024 * 1024;
const HOST_VCPUS_MAX: u32 = 64 * 1024;
/// 256 TiB.
const HOST_MEMORY_MIB_MAX: u32 = 256 * 1024 * 1024;
/// 64 PiB.
const HOST_DISK_GIB_MAX: u32 = 64 * 1024 * 1024;
pub(crate) const USER_DATA_BYTES_MAX: usize = 16 * 1024;

pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // An array would be taken for an object by the order of its fields.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::malformed(
            "the body is not what was expected: it must be a JSON object",
        ));
    }
    serde_json::from_slice(body).map_err(|error| {
        let error = shortened(&error.to_string());
        ApiError::malformed(&format!("the body is not what was expected: {error}"))
    })
}

pub(super) fn name(field: &str, name: &str) -> Result<(), ApiError> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let at_the_ends = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > NAME_CHARS_MAX || at_the_ends || !name.bytes().all(allowed) {
        return Err(ApiError::invalid(&format!(
            "`{field}` must have 1 to {NAME_CHARS_MAX} characters, each one of a to z, 0 to 9 and `-`, and no `-` at an end"
        )));
    }
    Ok(())
}

/// What a VM may take.
pub(super) fn size(vcpus: u32, memory_mib: u32, disk_gib: u32) -> Result<Size, ApiError> {
    within([
        ("vcpus", vcpus, 1, VCPUS_MAX),
        ("memory_mib", memory_mib, MEMORY_MIB_MIN, MEMORY_MIB_MAX),
        ("disk_gib", disk_gib, 1, DISK_GIB_MAX),
    ])?;
    Ok(Size {
        vcpus,
        memory_mib,
        disk_gib,
    })
}

/// What a VM may read when it starts.
pub(super) fn user_data(text: &str) -> Result<(), ApiError> {
    if text.len() > USER_DATA_BYTES_MAX {
        return Err(ApiError::invalid(&format!(
            "`user_data` has {} bytes; it may have {USER_DATA_BYTES_MAX}: let the VM fetch what is longer",
            text.len()
        )));
    }
    Ok(())
}

/// What a host may have.
pub(super) fn host_size(vcpus: u32, memory_mib: u32, disk_gib: u32) -> Result<Size, ApiError> {
    within([
        ("vcpus", vcpus, 1, HOST_VCPUS_MAX),
        (
            "memory_mib",
            memory_mib,
            MEMORY_MIB_MIN,
            HOST_MEMORY_MIB_MAX,
        ),
        ("disk_gib", disk_gib, 1, HOST_DISK_GIB_MAX),
    ])?;
    Ok(Size {
        vcpus,
        memory_mib,
        disk_gib,
    })
}

fn within(ranges: [(&str, u32, u32, u32); 3]) -> Result<(), ApiError> {
    for (field, value, least, most) in ranges {
        if !(least..=most).contains(&value) {
            return Err(ApiError::invalid(&format!(
                "`{field}` is {value}; it must be from {least} to {most}"
            )));
        }
    }
    Ok(())
}

pub(super) fn address(field: &str, text: &str) -> Result<(), ApiError> {
    match text.parse::<std::net::SocketAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err(ApiError::invalid(&format!(
            "`{field}` must be an address such as 127.0.0.1:7001"
        ))),
    }
}

/// The id from the body or from the header `Idempotency-Key`; empty where the client has none.
pub(super) fn request_id(headers: &HeaderMap, body: Option<String>) -> Result<String, ApiError> {
    let header = headers
        .get("idempotency-key")
        .map(|value| value.to_str().map(str::to_owned));
    let id = match (body, header) {
        (Some(id), _) | (None, Some(Ok(id))) => id,
        (None, Some(Err(_))) => {
            return Err(ApiError::invalid("`Idempotency-Key` must be ASCII"));
        }
        // Nobody can ask again for it, so its answer is not kept.
        (None, None) => return Ok(String::new()),
    };
    if id.is_empty() || id.len() > REQUEST_ID_BYTES_MAX || id.contains('/') {
        return Err(ApiError::invalid(&format!(
            "a request id must have 1 to {REQUEST_ID_BYTES_MAX} bytes and no `/`"
        )));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_have_bounds() {
        for good in ["a", "web-1", &"x".repeat(63)] {
            assert!(name("name", good).is_ok(), "{good}");
        }
        for bad in ["", "A", "a b", "a/b", "-", "-a", "a-", &"x".repeat(64)] {
            assert!(name("name", bad).is_err(), "{bad}");
        }
        assert!(size(1, 64, 1).is_ok());
        for bad in [(0, 64, 1), (1, 63, 1), (1, 64, 0), (u32::MAX, 64, 1)] {
            assert!(size(bad.0, bad.1, bad.2).is_err(), "{bad:?}");
            assert!(host_size(bad.0, bad.1, bad.2).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_id_has_bounds_and_may_be_left_out() {
        let headers = HeaderMap::new();
        assert_eq!(request_id(&headers, None).ok(), Some(String::new()));
        let id = Some("r-1".to_owned());
        assert_eq!(request_id(&headers, id.clone()).ok(), id);
        assert!(request_id(&headers, Some("x".repeat(65))).is_err());
        assert!(request_id(&headers, Some("a/b".to_owned())).is_err());
    }
}
