//! Attributes known at compile time: an index instead of a search.

use crate::MetricsError;
use crate::attributes::KeyValue;
use std::fmt;
use std::ops::Index;

/// The values of one attribute as an enum. [`label_set!`](crate::label_set) implements it.
pub trait LabelSet: Copy + Sized + 'static {
    /// The attribute's key.
    const KEY: &'static str;
    /// All values, in the order of their places.
    const ALL: &'static [Self];
    /// An array with a place for each value.
    type Array<T>: 'static + AsRef<[T]>
    where
        T: 'static;

    /// The attribute's value.
    fn value(self) -> &'static str;

    /// What is in this value's place.
    fn pick<T: 'static>(self, items: &Self::Array<T>) -> &T;

    /// An array of one item for each value; `None` if there are more or less.
    fn array<T: 'static>(items: Vec<T>) -> Option<Self::Array<T>>;
}

/// One dimension of a table, indexed by a label.
pub struct Row<L: LabelSet, T: 'static> {
    items: L::Array<T>,
}

impl<L: LabelSet, T> Index<L> for Row<L, T> {
    type Output = T;

    #[inline]
    fn index(&self, label: L) -> &T {
        label.pick(&self.items)
    }
}

impl<L: LabelSet, T: fmt::Debug> fmt::Debug for Row<L, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = L::ALL.iter().map(|label| label.value());
        f.debug_map()
            .entries(labels.zip(self.items.as_ref()))
            .finish()
    }
}

impl<L: LabelSet, T> Row<L, T> {
    /// All items in the order of their labels.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.items.as_ref().iter()
    }
}

impl<'a, L: LabelSet, T> IntoIterator for &'a Row<L, T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One to three [`LabelSet`]s as a tuple.
pub trait Labels {
    /// A table with an item for each combination.
    type Table<C: 'static>: 'static;

    #[doc(hidden)]
    fn make<C: 'static>(
        prefix: &mut Vec<KeyValue>,
        make: &mut MakeCell<'_, C>,
    ) -> Result<Self::Table<C>, MetricsError>;
}

type MakeCell<'a, C> = dyn FnMut(&[KeyValue]) -> Result<C, MetricsError> + 'a;

impl Labels for () {
    type Table<C: 'static> = C;

    fn make<C: 'static>(
        prefix: &mut Vec<KeyValue>,
        make: &mut MakeCell<'_, C>,
    ) -> Result<C, MetricsError> {
        make(prefix)
    }
}

fn make_row<L: LabelSet, Rest: Labels, C: 'static>(
    prefix: &mut Vec<KeyValue>,
    make: &mut MakeCell<'_, C>,
) -> Result<Row<L, Rest::Table<C>>, MetricsError> {
    let mut items = Vec::with_capacity(L::ALL.len());
    for label in L::ALL {
        prefix.push(KeyValue::new(L::KEY, label.value()));
        let item = Rest::make(prefix, make);
        prefix.pop();
        items.push(item?);
    }
    let items =
        L::array(items).expect("an item was made for each value of `ALL`, which the macro counts");
    Ok(Row { items })
}

macro_rules! tuple {
    ($First:ident $($Rest:ident)*) => {
        impl<$First: LabelSet, $($Rest: LabelSet),*> Labels for ($First, $($Rest,)*) {
            type Table<C: 'static> = Row<$First, <($($Rest,)*) as Labels>::Table<C>>;

            fn make<X: 'static>(prefix: &mut Vec<KeyValue>, make: &mut MakeCell<'_, X>) -> Result<Self::Table<X>, MetricsError> {
                make_row::<$First, ($($Rest,)*), X>(prefix, make)
            }
        }
    };
}

tuple!(A);
tuple!(A B);
tuple!(A B D);

/// Declares the values of an attribute as an enum, for tables of instruments.
///
/// ```
/// use perf_metrics::{LabelSet, label_set};
///
/// label_set! {
///     /// What is done to a VM.
///     pub enum Operation: "operation" {
///         /// A VM is made.
///         Create => "create",
///         /// A VM is stopped.
///         Stop => "stop",
///     }
/// }
///
/// assert_eq!(Operation::Stop.value(), "stop");
/// assert_eq!(Operation::from_value("create"), Some(Operation::Create));
/// ```
#[macro_export]
macro_rules! label_set {
    (
        $(#[$meta:meta])*
        $vis:vis enum $Set:ident : $key:literal {
            $($(#[$label_meta:meta])* $Label:ident => $value:literal),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $vis enum $Set {
            $($(#[$label_meta])* $Label),+
        }

        impl $Set {
            /// The label of this value.
            #[allow(dead_code, reason = "not every user of a label set looks labels up by name")]
            #[inline]
            $vis fn from_value(value: &str) -> ::core::option::Option<Self> {
                match value {
                    $($value => ::core::option::Option::Some(Self::$Label),)+
                    _ => ::core::option::Option::None,
                }
            }
        }

        impl $crate::LabelSet for $Set {
            const KEY: &'static str = $key;
            const ALL: &'static [Self] = &[$(Self::$Label),+];
            type Array<T> = [T; [$($value),+].len()] where T: 'static;

            #[inline]
            fn value(self) -> &'static str {
                match self {
                    $(Self::$Label => $value),+
                }
            }

            #[inline]
            fn pick<T: 'static>(self, items: &Self::Array<T>) -> &T {
                &items[self as usize]
            }

            fn array<T: 'static>(items: ::std::vec::Vec<T>) -> ::core::option::Option<Self::Array<T>> {
                <Self::Array<T>>::try_from(items).ok()
            }
        }
    };
}
