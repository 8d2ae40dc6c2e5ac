//! Sets of flags packed into one atomic word.

use crate::flag_set;

flag_set! {
    /// What a node is, in three flags that every task asks for: a read is one load.
    ///
    /// ```
    /// use perf_atomics::AtomicFlags;
    ///
    /// static FLAGS: AtomicFlags = AtomicFlags::new();
    ///
    /// FLAGS.set_leader(true);
    /// assert!(FLAGS.is_leader());
    /// let now = FLAGS.snapshot();
    /// assert!(now.is_leader() && !now.is_connected());
    /// ```
    pub struct AtomicFlags: FlagsSnapshot {
        /// This node leads its Raft group.
        is_leader, set_leader;
        /// This node has finished its start-up.
        is_initialized, set_initialized;
        /// This node reaches a quorum of its peers.
        is_connected, set_connected;
    }
}

/// Declares a set of up to 64 flags, packed into one atomic word, and the type of its snapshots.
///
/// Each line names the reader and the setter of one flag. The set has:
///
/// | method | what it does | cost |
/// |---|---|---|
/// | `const fn new()` | all flags off; usable in a `static` | |
/// | `is_x()` | reads one flag; `Acquire` | one load |
/// | `set_x(bool) -> bool` | writes one flag, returns what it was; `AcqRel` | one read-modify-write |
/// | `snapshot()` | all flags at one moment; `Acquire` | one load |
/// | `replace(snapshot)` | writes all flags at once, returns what they were; `AcqRel` | one swap |
/// | `compare_and_set(expected, new)` | writes all flags if none changed since `expected`; `AcqRel` | one compare-exchange |
///
/// A reader that sees a flag also sees everything its setter's thread wrote before setting it. A
/// snapshot is a plain `Copy` value with the same names: `is_x()`, `set_x(&mut self, bool)`.
///
/// More than 64 flags are a compile error.
///
/// ```
/// perf_atomics::flag_set! {
///     /// What a worker is doing.
///     pub struct WorkerFlags: WorkerFlagsSnapshot {
///         /// Takes new work.
///         is_accepting, set_accepting;
///         /// Finishes what it has and then stops.
///         is_draining, set_draining;
///     }
/// }
///
/// let flags = WorkerFlags::new();
/// flags.set_accepting(true);
///
/// // From accepting to draining in one step, unless another thread was faster.
/// let seen = flags.snapshot();
/// let mut next = seen;
/// next.set_accepting(false);
/// next.set_draining(true);
/// assert_eq!(flags.compare_and_set(seen, next), Ok(()));
/// assert!(flags.is_draining());
/// ```
#[macro_export]
macro_rules! flag_set {
    (
        $(#[$set_meta:meta])*
        $vis:vis struct $Set:ident : $Snapshot:ident {
            $($(#[$flag_meta:meta])* $get:ident, $set:ident);+ $(;)?
        }
    ) => {
        $(#[$set_meta])*
        #[derive(Default)]
        $vis struct $Set($crate::__private::AtomicU64);

        #[doc = concat!("The flags of [`", stringify!($Set), "`] at one moment.")]
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        $vis struct $Snapshot(u64);

        const _: () = {
            #[allow(non_camel_case_types, clippy::enum_variant_names)]
            #[derive(Clone, Copy)]
            enum Flag { $($get),+ }

            const COUNT: usize = [$(Flag::$get),+].len();
            assert!(COUNT <= 64, "a flag_set! holds at most 64 flags");

            impl Flag {
                const fn mask(self) -> u64 {
                    1 << self as u32
                }
            }

            #[allow(dead_code)]
            impl $Set {
                /// A set with all flags off.
                #[must_use]
                pub const fn new() -> Self {
                    Self($crate::__private::AtomicU64::new(0))
                }

                /// All flags at one moment. One `Acquire` load.
                #[inline]
                #[must_use]
                pub fn snapshot(&self) -> $Snapshot {
                    $Snapshot(self.0.load($crate::__private::Ordering::Acquire))
                }

                /// Writes all flags at once and returns what they were. `AcqRel`.
                #[inline]
                pub fn replace(&self, new: $Snapshot) -> $Snapshot {
                    $Snapshot(self.0.swap(new.0, $crate::__private::Ordering::AcqRel))
                }

                /// Writes all flags at once if they still are as `expected`. `AcqRel`.
                ///
                /// # Errors
                /// The flags as they are, if they are not as `expected`; nothing was written then.
                #[inline]
                pub fn compare_and_set(
                    &self,
                    expected: $Snapshot,
                    new: $Snapshot,
                ) -> ::core::result::Result<(), $Snapshot> {
                    self.0
                        .compare_exchange(
                            expected.0,
                            new.0,
                            $crate::__private::Ordering::AcqRel,
                            $crate::__private::Ordering::Acquire,
                        )
                        .map(|_| ())
                        .map_err($Snapshot)
                }

                $(
                    $(#[$flag_meta])*
                    ///
                    /// One `Acquire` load.
                    #[inline]
                    #[must_use]
                    pub fn $get(&self) -> bool {
                        self.snapshot().$get()
                    }

                    #[doc = concat!("Sets [`", stringify!($get), "`](Self::", stringify!($get), ") and returns what it was. `AcqRel`.")]
                    #[inline]
                    pub fn $set(&self, value: bool) -> bool {
                        let mask = Flag::$get.mask();
                        let before = if value {
                            self.0.fetch_or(mask, $crate::__private::Ordering::AcqRel)
                        } else {
                            self.0.fetch_and(!mask, $crate::__private::Ordering::AcqRel)
                        };
                        before & mask != 0
                    }
                )+
            }

            impl ::core::fmt::Debug for $Set {
                fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                    self.snapshot().debug_as(stringify!($Set), f)
                }
            }

            #[allow(dead_code)]
            impl $Snapshot {
                /// All flags off.
                #[must_use]
                pub const fn new() -> Self {
                    Self(0)
                }

                fn debug_as(
                    self,
                    name: &str,
                    f: &mut ::core::fmt::Formatter<'_>,
                ) -> ::core::fmt::Result {
                    f.debug_struct(name)
                        $(.field(stringify!($get), &self.$get()))+
                        .finish()
                }

                $(
                    $(#[$flag_meta])*
                    #[inline]
                    #[must_use]
                    pub const fn $get(self) -> bool {
                        self.0 & Flag::$get.mask() != 0
                    }

                    #[doc = concat!("Sets [`", stringify!($get), "`](Self::", stringify!($get), ") in this copy.")]
                    #[inline]
                    pub const fn $set(&mut self, value: bool) {
                        let mask = Flag::$get.mask();
                        self.0 = if value { self.0 | mask } else { self.0 & !mask };
                    }
                )+
            }

            impl ::core::fmt::Debug for $Snapshot {
                fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                    self.debug_as(stringify!($Snapshot), f)
                }
            }
        };
    };
}

/// Sixty-four flags fit:
///
/// ```
/// perf_atomics::flag_set! {
///     struct Full: FullSnapshot {
///         is_0, set_0; is_1, set_1; is_2, set_2; is_3, set_3; is_4, set_4; is_5, set_5; is_6, set_6; is_7, set_7;
///         is_8, set_8; is_9, set_9; is_10, set_10; is_11, set_11; is_12, set_12; is_13, set_13; is_14, set_14; is_15, set_15;
///         is_16, set_16; is_17, set_17; is_18, set_18; is_19, set_19; is_20, set_20; is_21, set_21; is_22, set_22; is_23, set_23;
///         is_24, set_24; is_25, set_25; is_26, set_26; is_27, set_27; is_28, set_28; is_29, set_29; is_30, set_30; is_31, set_31;
///         is_32, set_32; is_33, set_33; is_34, set_34; is_35, set_35; is_36, set_36; is_37, set_37; is_38, set_38; is_39, set_39;
///         is_40, set_40; is_41, set_41; is_42, set_42; is_43, set_43; is_44, set_44; is_45, set_45; is_46, set_46; is_47, set_47;
///         is_48, set_48; is_49, set_49; is_50, set_50; is_51, set_51; is_52, set_52; is_53, set_53; is_54, set_54; is_55, set_55;
///         is_56, set_56; is_57, set_57; is_58, set_58; is_59, set_59; is_60, set_60; is_61, set_61; is_62, set_62; is_63, set_63;
///     }
/// }
/// let flags = Full::new();
/// flags.set_63(true);
/// assert!(flags.is_63() && !flags.is_0());
/// ```
///
/// One more does not compile:
///
/// ```compile_fail,E0080
/// perf_atomics::flag_set! {
///     struct TooMany: TooManySnapshot {
///         is_0, set_0; is_1, set_1; is_2, set_2; is_3, set_3; is_4, set_4; is_5, set_5; is_6, set_6; is_7, set_7;
///         is_8, set_8; is_9, set_9; is_10, set_10; is_11, set_11; is_12, set_12; is_13, set_13; is_14, set_14; is_15, set_15;
///         is_16, set_16; is_17, set_17; is_18, set_18; is_19, set_19; is_20, set_20; is_21, set_21; is_22, set_22; is_23, set_23;
///         is_24, set_24; is_25, set_25; is_26, set_26; is_27, set_27; is_28, set_28; is_29, set_29; is_30, set_30; is_31, set_31;
///         is_32, set_32; is_33, set_33; is_34, set_34; is_35, set_35; is_36, set_36; is_37, set_37; is_38, set_38; is_39, set_39;
///         is_40, set_40; is_41, set_41; is_42, set_42; is_43, set_43; is_44, set_44; is_45, set_45; is_46, set_46; is_47, set_47;
///         is_48, set_48; is_49, set_49; is_50, set_50; is_51, set_51; is_52, set_52; is_53, set_53; is_54, set_54; is_55, set_55;
///         is_56, set_56; is_57, set_57; is_58, set_58; is_59, set_59; is_60, set_60; is_61, set_61; is_62, set_62; is_63, set_63;
///         is_64, set_64;
///     }
/// }
/// ```
#[cfg(doctest)]
struct FlagsMax;
