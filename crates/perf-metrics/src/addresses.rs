//! Recognising attributes by where their texts are.
//!
//! The texts of most attributes are constants, so the same record comes with the same addresses. A series keeps a copy of its
//! attributes for good; when the copy's texts are where the originals' are, nothing else can ever be there, and equal
//! addresses mean equal texts. What does not match is compared by its contents.

use crate::attributes::{AttributeValue, KeyValue};

/// Where an attribute's texts are, or its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    key: usize,
    key_len: usize,
    /// The address of a text, or a number.
    value: u64,
    /// The length of a text, or one of the numbers below, which are longer than any text.
    what: usize,
}

/// What is identified by its contents only.
const UNKNOWN: usize = usize::MAX;
const I64: usize = usize::MAX - 1;
const BOOL: usize = usize::MAX - 2;
const F64: usize = usize::MAX - 3;

/// Where a value's text is and how long, or the number and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ValueAddress(u64, usize);

impl ValueAddress {
    #[inline]
    pub(crate) fn of(attribute: &KeyValue) -> Self {
        match &attribute.value {
            AttributeValue::String(value) => {
                let text = value.as_str();
                Self(text.as_ptr() as u64, text.len())
            }
            other => Self::of_number(other),
        }
    }

    /// Apart, as a jump by a table costs texts more than a comparison.
    #[inline(never)]
    fn of_number(value: &AttributeValue) -> Self {
        match value {
            AttributeValue::I64(number) => Self(*number as u64, I64),
            AttributeValue::Bool(flag) => Self(u64::from(*flag), BOOL),
            AttributeValue::F64(number) => Self(number.to_bits(), F64),
            _ => Self(0, UNKNOWN),
        }
    }
}

impl Address {
    fn of(attribute: &KeyValue) -> Self {
        let key = attribute.key.as_str();
        let ValueAddress(value, what) = ValueAddress::of(attribute);
        Self {
            key: key.as_ptr() as usize,
            key_len: key.len(),
            value,
            what,
        }
    }

    fn is_known(&self) -> bool {
        self.what != UNKNOWN
    }

    /// Whether this is the address of an attribute whose value has that address.
    #[inline]
    fn is(&self, attribute: &KeyValue, value: &ValueAddress) -> bool {
        let key = attribute.key.as_str();
        self.value == value.0
            && self.what == value.1
            && self.key == key.as_ptr() as usize
            && self.key_len == key.len()
    }
}

/// A hash of the numbers among the values and of where the others are; never zero. Keys are left out: an instrument mostly
/// has the same. The seed is secret, so that no client can choose numbers that all meet in one slot.
#[inline]
pub(crate) fn tag(seed: u64, values: impl Iterator<Item = ValueAddress>) -> u64 {
    // An odd constant spreads the bits: the fraction of the golden ratio. Both halves of the product are used, as every bit
    // of the word reaches one of them (folded multiplication, as in wyhash and foldhash).
    const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15;
    let mix = |sum: u64, value: ValueAddress| {
        let product = u128::from(sum ^ value.0) * SPREAD;
        (product as u64) ^ (product >> 64) as u64
    };
    values.fold(seed, mix) | 1
}

/// Whether the attributes, whose values have the addresses `values`, have these addresses. No addresses match nothing: there is at
/// least one attribute.
#[inline]
pub(crate) fn are_in<const N: usize>(
    addresses: &[Address],
    attributes: &[KeyValue; N],
    values: &[ValueAddress; N],
) -> bool {
    match <&[Address; N]>::try_from(addresses) {
        Ok(addresses) => (0..N).all(|n| addresses[n].is(&attributes[n], &values[n])),
        Err(_) => false,
    }
}

/// The same for any number of attributes.
pub(crate) fn match_all(addresses: &[Address], attributes: &[KeyValue]) -> bool {
    let mut both = addresses.iter().zip(attributes);
    addresses.len() == attributes.len()
        && both.all(|(address, attribute)| address.is(attribute, &ValueAddress::of(attribute)))
}

/// The addresses of `attributes` if `kept`, their copy, has all of them; otherwise none.
pub(crate) fn of_constants(attributes: &[KeyValue], kept: &[KeyValue]) -> Box<[Address]> {
    let is_kept = |address: &Address| kept.iter().any(|other| Address::of(other) == *address);
    let addresses: Box<[Address]> = attributes.iter().map(Address::of).collect();
    let are_constants = addresses
        .iter()
        .all(|address| address.is_known() && is_kept(address));
    if are_constants {
        addresses
    } else {
        Box::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_constants_have_addresses() {
        let constants = [
            KeyValue::new("a", "x"),
            KeyValue::new("b", 1),
            KeyValue::new("c", 0.5),
        ];
        let copy = constants.to_vec();
        let addresses = of_constants(&constants, &copy);
        assert!(match_all(&addresses, &copy) && match_all(&addresses, &constants));
        let values = |set: &[KeyValue; 3]| set.each_ref().map(ValueAddress::of);
        assert!(are_in(&addresses, &constants, &values(&constants)));
        let tag_of = |seed, set: &[KeyValue]| tag(seed, set.iter().map(ValueAddress::of));
        assert_eq!(tag_of(7, &copy), tag_of(7, &constants));
        assert_ne!(tag_of(7, &copy), tag_of(8, &copy));
        assert!(!match_all(&addresses, &copy[..2]) && !match_all(&[], &copy));
        let other = [
            KeyValue::new("a", "x"),
            KeyValue::new("b", 1),
            KeyValue::new("c", 0.25),
        ];
        assert!(!match_all(&addresses, &other) && !are_in(&addresses, &other, &values(&other)));
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
