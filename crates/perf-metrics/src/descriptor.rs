//! What an instrument is called and what it counts.

use crate::MetricsError;
use crate::attributes::{KeyValue, normalize};
use std::borrow::Cow;
use std::sync::Arc;

/// How measurements of an instrument are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InstrumentKind {
    /// A sum that only grows.
    Counter,
    /// A sum that grows and shrinks.
    UpDownCounter,
    /// The last value set.
    Gauge,
    /// A distribution.
    Histogram,
}

/// The type of an instrument's measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NumberKind {
    /// `u64`
    U64,
    /// `i64`
    I64,
    /// `f64`
    F64,
}

/// Who makes instruments: a library, with its version. Instruments of the same name in different scopes are different.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scope {
    name: Cow<'static, str>,
    version: Cow<'static, str>,
    schema_url: Cow<'static, str>,
    attributes: Vec<KeyValue>,
}

impl Scope {
    /// A scope of this name.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// The version of the library.
    #[must_use]
    pub fn with_version(mut self, version: impl Into<Cow<'static, str>>) -> Self {
        self.version = version.into();
        self
    }

    /// The URL of the schema that names follow.
    #[must_use]
    pub fn with_schema_url(mut self, url: impl Into<Cow<'static, str>>) -> Self {
        self.schema_url = url.into();
        self
    }

    /// More about it; of a key that is repeated the last counts.
    #[must_use]
    pub fn with_attributes(mut self, attributes: impl IntoIterator<Item = KeyValue>) -> Self {
        self.attributes = normalize(&attributes.into_iter().collect::<Vec<_>>());
        self
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version; empty if there is none.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The schema's URL; empty if there is none.
    #[must_use]
    pub fn schema_url(&self) -> &str {
        &self.schema_url
    }

    /// More about it, in the order of the keys.
    #[must_use]
    pub fn attributes(&self) -> &[KeyValue] {
        &self.attributes
    }
}

/// Name, unit and description of an instrument, valid by OpenTelemetry's rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Descriptor {
    name: Cow<'static, str>,
    unit: Cow<'static, str>,
    description: Cow<'static, str>,
    kind: InstrumentKind,
    number: NumberKind,
    is_observable: bool,
    scope: Option<Arc<Scope>>,
}

/// Longest name, in bytes: <https://opentelemetry.io/docs/specs/otel/metrics/api/#instrument-name-syntax>.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// Longest unit, in bytes: <https://opentelemetry.io/docs/specs/otel/metrics/api/#instrument-unit>.
pub(crate) const UNIT_BYTES_MAX: usize = 63;

impl Descriptor {
    pub(crate) fn new(
        name: Cow<'static, str>,
        unit: Cow<'static, str>,
        description: Cow<'static, str>,
        kind: InstrumentKind,
        number: NumberKind,
    ) -> Result<Self, MetricsError> {
        if !is_valid_name(&name) {
            return Err(MetricsError::InvalidName {
                name: name.into_owned(),
            });
        }
        if !unit.is_ascii() || unit.len() > UNIT_BYTES_MAX {
            return Err(MetricsError::InvalidUnit {
                name: name.into_owned(),
                unit: unit.into_owned(),
            });
        }
        Ok(Self {
            name,
            unit,
            description,
            kind,
            number,
            is_observable: false,
            scope: None,
        })
    }

    /// Of an instrument that no registry knows.
    pub(crate) const fn detached(kind: InstrumentKind, number: NumberKind) -> Self {
        Self {
            name: Cow::Borrowed("detached"),
            unit: Cow::Borrowed(""),
            description: Cow::Borrowed(""),
            kind,
            number,
            is_observable: false,
            scope: None,
        }
    }

    pub(crate) fn in_scope(mut self, scope: Option<Arc<Scope>>) -> Self {
        self.scope = scope;
        self
    }

    /// Whether both are of the same name, kind, number and unit and, if it matters, of the same description.
    pub(crate) fn is_same(&self, other: &Self, description_matters: bool) -> bool {
        self.name.eq_ignore_ascii_case(&other.name)
            && (self.kind, self.number, self.is_observable, &self.unit)
                == (other.kind, other.number, other.is_observable, &other.unit)
            && (!description_matters || self.description == other.description)
    }

    pub(crate) fn observable(mut self) -> Self {
        self.is_observable = true;
        self
    }

    /// Whether its values are observed by callbacks at collection.
    #[must_use]
    pub fn is_observable(&self) -> bool {
        self.is_observable
    }

    /// The scope of the registry handle that made it, if it has one.
    #[must_use]
    pub fn scope(&self) -> Option<&Scope> {
        self.scope.as_deref()
    }

    #[cfg(feature = "otlp")]
    pub(crate) fn scope_arc(&self) -> Option<&Arc<Scope>> {
        self.scope.as_ref()
    }

    /// The name, such as `vm.operations`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The unit in UCUM notation, such as `By` or `{operation}`; empty if there is none.
    #[must_use]
    pub fn unit(&self) -> &str {
        &self.unit
    }

    /// One sentence for the reader of a dashboard.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// How measurements are combined.
    #[must_use]
    pub fn kind(&self) -> InstrumentKind {
        self.kind
    }

    /// The type of the measurements.
    #[must_use]
    pub fn number(&self) -> NumberKind {
        self.number
    }

    #[cfg(feature = "otel")]
    pub(crate) fn texts(&self) -> [Cow<'static, str>; 3] {
        [
            self.name.clone(),
            self.unit.clone(),
            self.description.clone(),
        ]
    }
}

fn is_valid_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= NAME_BYTES_MAX
        && bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-/".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_specification() {
        let long = "a".repeat(NAME_BYTES_MAX);
        for valid in ["a", "vm.operations", "A-b_c/d.9", &long] {
            assert!(is_valid_name(valid), "{valid}");
        }
        let too_long = "a".repeat(NAME_BYTES_MAX + 1);
        for invalid in ["", "9a", "_a", "a b", "é", "a{b}", &too_long] {
            assert!(!is_valid_name(invalid), "{invalid}");
        }
    }
}
