//! In the place of `by_moka.rs` without the feature `moka`: a type without values, so what asks one is compiled away.

use crate::policy::Policy;

pub(crate) enum ByMoka {}

impl ByMoka {
    pub(crate) const fn new(_: Policy, _: u64) -> Option<Self> {
        None
    }

    pub(crate) const fn insert(&self, _: u64, _: u32) {
        match *self {}
    }

    pub(crate) const fn read(&self, _: u64) {
        match *self {}
    }

    pub(crate) const fn forget(&self, _: u64) {
        match *self {}
    }

    pub(crate) const fn victims(&self, _: bool) -> Vec<u64> {
        match *self {}
    }

    pub(crate) const fn reset(&self, _: u64) {
        match *self {}
    }
}
