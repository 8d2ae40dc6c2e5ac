//! Sets of attributes: equal in whatever order.

pub use opentelemetry::{Key, KeyValue, Value as AttributeValue};

use foldhash::fast::RandomState;
use opentelemetry::{Array, Value};
use std::hash::{BuildHasher, Hasher};

/// No attributes. Recording with it costs the same as recording without.
pub const EMPTY_ATTRS: &[KeyValue] = &[];

/// Of the series that counts what exceeds an instrument's limit:
/// <https://opentelemetry.io/docs/specs/otel/metrics/sdk/#overflow-attribute>.
pub(crate) fn overflow_set() -> [KeyValue; 1] {
    [KeyValue::new("otel.metric.overflow", true)]
}

/// A hash that does not depend on the order of the attributes.
#[inline]
pub(crate) fn hash_set(state: &RandomState, attributes: &[KeyValue]) -> u64 {
    attributes.iter().fold(0, |sum: u64, attribute| {
        let mut hasher = state.build_hasher();
        hasher.write(attribute.key.as_str().as_bytes());
        hash_value(&mut hasher, &attribute.value);
        sum.wrapping_add(hasher.finish())
    })
}

#[inline]
fn hash_value(hasher: &mut impl Hasher, value: &Value) {
    match value {
        Value::String(text) => hasher.write(text.as_str().as_bytes()),
        Value::I64(number) => hasher.write_u64(*number as u64),
        Value::Bool(flag) => hasher.write_u64(u64::from(*flag)),
        Value::F64(number) => hasher.write_u64(number.to_bits()),
        Value::Array(array) => hash_array(hasher, array),
        // Unknown to this version: equality still tells them apart.
        _ => {}
    }
}

#[cold]
fn hash_array(hasher: &mut impl Hasher, array: &Array) {
    match array {
        Array::Bool(items) => items
            .iter()
            .for_each(|item| hasher.write_u8((*item).into())),
        Array::I64(items) => items.iter().for_each(|item| hasher.write_u64(*item as u64)),
        Array::F64(items) => items
            .iter()
            .for_each(|item| hasher.write_u64(item.to_bits())),
        Array::String(items) => items
            .iter()
            .for_each(|item| hasher.write(item.as_str().as_bytes())),
        _ => {}
    }
}

/// Whether two sets without repeated keys hold the same attributes.
#[inline]
pub(crate) fn same_set(a: &[KeyValue], b: &[KeyValue]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    if a.iter().zip(b).all(|(a, b)| same(a, b)) {
        return true;
    }
    a.iter().all(|a| b.iter().any(|b| same(a, b))) && !repeats_keys(a)
}

#[inline]
fn same(a: &KeyValue, b: &KeyValue) -> bool {
    same_text(a.key.as_str(), b.key.as_str())
        && match (&a.value, &b.value) {
            (Value::String(a), Value::String(b)) => same_text(a.as_str(), b.as_str()),
            (Value::I64(a), Value::I64(b)) => a == b,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            // By bits, so that what is not a number is one series and not a new one each time.
            (Value::F64(a), Value::F64(b)) => a.to_bits() == b.to_bits(),
            (Value::Array(Array::F64(a)), Value::Array(Array::F64(b))) => a
                .iter()
                .map(|n| n.to_bits())
                .eq(b.iter().map(|n| n.to_bits())),
            (a, b) => a == b,
        }
}

/// Most texts are the same constant: then where they are tells it already.
#[inline]
fn same_text(a: &str, b: &str) -> bool {
    std::ptr::eq(a, b) || a == b
}

/// Whether a key occurs twice. Quadratic: sets are small.
pub(crate) fn repeats_keys(attributes: &[KeyValue]) -> bool {
    let repeats =
        |(place, a): (usize, &KeyValue)| attributes[..place].iter().any(|b| a.key == b.key);
    attributes.iter().enumerate().any(repeats)
}

/// A set without repeated keys, of which the last value counts, in the order of the keys.
pub(crate) fn normalize(attributes: &[KeyValue]) -> Vec<KeyValue> {
    let mut normal = attributes.to_vec();
    normal.reverse();
    // Stable: of the same keys the last given now comes first.
    normal.sort_by(|a, b| a.key.cmp(&b.key));
    normal.dedup_by(|a, b| a.key == b.key);
    normal
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set() -> impl Strategy<Value = Vec<KeyValue>> {
        let value = prop_oneof![
            (0i64..3).prop_map(Value::I64),
            any::<bool>().prop_map(Value::Bool),
            prop_oneof![Just(f64::NAN), Just(0.0), Just(-0.0)].prop_map(Value::F64),
            "[ab]{0,2}".prop_map(Value::from),
            proptest::collection::vec(0i64..2, 0..3)
                .prop_map(|items| Value::Array(Array::I64(items))),
        ];
        proptest::collection::vec(("[ab]{1,2}", value), 0..5).prop_map(|pairs| {
            pairs
                .into_iter()
                .map(|(key, value)| KeyValue::new(key, value))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn order_does_not_matter_and_the_last_of_a_key_counts(set in set().prop_shuffle(), seed: u64) {
            let state = RandomState::default();
            let normal = normalize(&set);
            prop_assert!(!repeats_keys(&normal));
            for kv in &normal {
                let last = set.iter().rfind(|other| other.key == kv.key).unwrap();
                prop_assert!(same(kv, last));
            }
            let mut shuffled = normal.clone();
            shuffled.rotate_left(seed as usize % normal.len().max(1));
            prop_assert!(same_set(&normal, &shuffled));
            prop_assert_eq!(hash_set(&state, &normal), hash_set(&state, &shuffled));
            prop_assert_eq!(same_set(&set, &set), true);
        }

        #[test]
        fn different_sets_differ(a in set(), b in set()) {
            let (a, b) = (normalize(&a), normalize(&b));
            let same_bits = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| format!("{a:?}") == format!("{b:?}"));
            prop_assert_eq!(same_set(&a, &b), same_bits);
        }
    }
}
