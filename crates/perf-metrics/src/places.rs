//! Recognising attributes by where their texts are.
//!
//! The texts of most attributes are constants, so the same record comes with the same addresses. A series keeps a copy of its
//! attributes for good; when the copy's texts are where the originals' are, nothing else can ever be there, and equal
//! places mean equal texts. What does not match is compared by its contents.

use crate::attributes::{AttributeValue, KeyValue};

/// A hash of the numbers among the values and of where the others are; never zero. Keys are left out: an instrument mostly
/// has the same. The seed is secret, so that nobody can choose numbers that all meet in one slot.
#[inline]
pub(crate) fn tag(seed: u64, attributes: &[KeyValue]) -> u64 {
    // An odd constant spreads the bits: the fraction of the golden ratio. Both halves of the product are used, as every bit
    // of the word reaches one of them (folded multiplication, as in wyhash and foldhash).
    const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15;
    let mix = |sum: u64, attribute: &KeyValue| {
        let word = match &attribute.value {
            AttributeValue::String(value) => value.as_str().as_ptr() as u64,
            AttributeValue::I64(number) => *number as u64,
            AttributeValue::Bool(flag) => u64::from(*flag),
            AttributeValue::F64(number) => number.to_bits(),
            _ => 0,
        };
        let product = u128::from(sum ^ word) * SPREAD;
        (product as u64) ^ (product >> 64) as u64
    };
    attributes.iter().fold(seed, mix) | 1
}

/// Where an attribute's texts are, or its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    key: (usize, usize),
    value: (u64, usize),
    /// What `value` is.
    kind: u8,
}

impl Place {
    /// `None` for what is identified by its contents only.
    #[inline]
    pub(crate) fn of(attribute: &KeyValue) -> Option<Self> {
        let text = |text: &str| (text.as_ptr() as usize, text.len());
        let (kind, value) = match &attribute.value {
            AttributeValue::String(value) => {
                (1, (value.as_str().as_ptr() as u64, value.as_str().len()))
            }
            AttributeValue::I64(number) => (2, (*number as u64, 0)),
            AttributeValue::Bool(flag) => (3, (u64::from(*flag), 0)),
            AttributeValue::F64(number) => (4, (number.to_bits(), 0)),
            _ => return None,
        };
        Some(Self {
            key: text(attribute.key.as_str()),
            value,
            kind,
        })
    }

    /// Whether [`of`](Self::of) would say this of the attribute.
    #[inline]
    fn matches(&self, attribute: &KeyValue) -> bool {
        let key = attribute.key.as_str();
        let is_value = match &attribute.value {
            AttributeValue::String(value) => {
                let text = value.as_str();
                self.kind == 1 && self.value.0 == text.as_ptr() as u64 && self.value.1 == text.len()
            }
            AttributeValue::I64(number) => self.kind == 2 && self.value.0 == *number as u64,
            AttributeValue::Bool(flag) => self.kind == 3 && self.value.0 == u64::from(*flag),
            AttributeValue::F64(number) => self.kind == 4 && self.value.0 == number.to_bits(),
            _ => false,
        };
        is_value && self.key.0 == key.as_ptr() as usize && self.key.1 == key.len()
    }
}

/// Whether each attribute is in its place. A set that has no places matches nothing: there is at least one attribute.
#[inline]
pub(crate) fn match_all(places: &[Place], attributes: &[KeyValue]) -> bool {
    places.len() == attributes.len()
        && places
            .iter()
            .zip(attributes)
            .all(|(place, attribute)| place.matches(attribute))
}

/// The places of `attributes` if `kept`, their copy, has all of them; otherwise none.
pub(crate) fn of_constants(attributes: &[KeyValue], kept: &[KeyValue]) -> Box<[Place]> {
    let is_kept = |place: &Place| kept.iter().any(|other| Place::of(other) == Some(*place));
    let places: Option<Box<[Place]>> = attributes
        .iter()
        .map(|attribute| Place::of(attribute).filter(is_kept))
        .collect();
    places.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_constants_have_places() {
        let constants = [
            KeyValue::new("a", "x"),
            KeyValue::new("b", 1),
            KeyValue::new("c", 0.5),
        ];
        let copy = constants.to_vec();
        let places = of_constants(&constants, &copy);
        assert!(match_all(&places, &copy) && match_all(&places, &constants));
        assert_eq!(tag(7, &copy), tag(7, &constants));
        assert_ne!(tag(7, &copy), tag(8, &copy));
        assert!(!match_all(&places, &copy[..2]) && !match_all(&[], &copy));
        let other = [
            KeyValue::new("a", "x"),
            KeyValue::new("b", 1),
            KeyValue::new("c", 0.25),
        ];
        assert!(!match_all(&places, &other));
        let owned = [KeyValue::new("a", String::from("x"))];
        let copy = owned.to_vec();
        assert!(of_constants(&owned, &copy).is_empty());
        let array = [KeyValue::new(
            "a",
            AttributeValue::Array(opentelemetry::Array::I64(vec![1])),
        )];
        assert!(of_constants(&array, &array).is_empty());
    }
}
