//! Which values to replay, so that an SDK's histogram comes out as ours is.
//!
//! Known are the counts of the buckets, the sum, and the smallest and largest value. One value is the smallest, one the
//! largest; all others start at the least their buckets allow and are raised, as far as the buckets allow, until
//! the sum is met. The recorded values are one solution, so there is one.

use crate::histogram::HistogramSnapshot;
use crate::number::Value;

/// What was recorded and not yet replayed.
#[derive(Default)]
pub(super) struct Pending {
    state: HistogramSnapshot,
    counts: Vec<u64>,
    count: u64,
    sum: Option<Value>,
    /// `None` once they were replayed.
    ends: Option<(Value, Value)>,
}

/// So many values of one bucket, and between which values they must be.
#[derive(Clone, Copy)]
struct Part<T> {
    bucket: usize,
    count: u64,
    low: T,
    high: T,
}

impl Pending {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Adds what was recorded since the last time.
    pub(super) fn add(&mut self, delta: &HistogramSnapshot) {
        if delta.count() == 0 {
            return;
        }
        let buckets = delta.buckets();
        self.counts.resize(buckets.len(), 0);
        for (pending, new) in self.counts.iter_mut().zip(buckets.iter()) {
            *pending = pending.wrapping_add(*new);
        }
        self.count = self.count.wrapping_add(delta.count());
        self.sum = Some(match (self.sum, delta.sum()) {
            (Some(Value::U64(a)), Value::U64(b)) => Value::U64(a.wrapping_add(b)),
            (Some(Value::F64(a)), Value::F64(b)) => Value::F64(a + b),
            (_, new) => new,
        });
        self.ends = match (self.ends, delta.min(), delta.max()) {
            (Some((min, max)), Some(low), Some(high)) => {
                let lower = if low.as_f64() < min.as_f64() {
                    low
                } else {
                    min
                };
                Some((
                    lower,
                    if high.as_f64() > max.as_f64() {
                        high
                    } else {
                        max
                    },
                ))
            }
            (None, Some(low), Some(high)) => Some((low, high)),
            (ends, ..) => ends,
        };
        self.state.clone_layout(delta);
    }

    /// Calls `record` with values and how often, as far as the budget goes.
    pub(super) fn replay(&mut self, budget: &mut u64, mut record: impl FnMut(Value, u64)) {
        match (self.sum, self.ends) {
            (Some(Value::U64(sum)), ends) => {
                let ends = ends.and_then(|ends| match ends {
                    (Value::U64(min), Value::U64(max)) => Some((min, max)),
                    _ => None,
                });
                let runs = self.plan_u64(sum, ends);
                self.run(runs, budget, |value, times| {
                    record(Value::U64(value), times)
                });
            }
            (Some(Value::F64(sum)), ends) => {
                let ends = ends.and_then(|ends| match ends {
                    (Value::F64(min), Value::F64(max)) => Some((min, max)),
                    _ => None,
                });
                let runs = self.plan_f64(sum, ends);
                self.run(runs, budget, |value, times| {
                    record(Value::F64(value), times)
                });
            }
            _ => {}
        }
    }

    fn run<T: Copy + Into<Number>>(
        &mut self,
        runs: Vec<(usize, T, u64)>,
        budget: &mut u64,
        mut record: impl FnMut(T, u64),
    ) {
        for (bucket, value, times) in runs {
            let times = times.min(*budget);
            if times == 0 {
                continue;
            }
            *budget -= times;
            record(value, times);
            self.counts[bucket] -= times;
            self.count -= times;
            self.sum = self.sum.map(|sum| value.into().taken_from(sum, times));
            // They come first.
            self.ends = None;
        }
        if self.count == 0 {
            self.sum = None;
        }
    }

    fn plan_u64(&self, sum: u64, ends: Option<(u64, u64)>) -> Vec<(usize, u64, u64)> {
        let floor = |bound: f64| if bound < 0.0 { 0 } else { bound as u64 };
        let bounds = |bucket: usize| {
            let (low, high) = self.state.bucket_range(bucket);
            // `(low, high]`, and zero belongs to the bucket that starts at or below it.
            let first = if low < 0.0 || self.state.is_zero_bucket(bucket) {
                0
            } else {
                floor(low).saturating_add(1)
            };
            (first, floor(high).max(first))
        };
        let (parts, fixed) = self.parts(ends, bounds, |a, b| a.max(b), |a, b| a.min(b));
        let mut runs = fixed;
        let mut missing = u128::from(sum);
        for (_, value, times) in &runs {
            missing = missing.saturating_sub(u128::from(*value) * u128::from(*times));
        }
        for part in &parts {
            missing = missing.saturating_sub(u128::from(part.low) * u128::from(part.count));
        }
        for Part {
            bucket,
            count,
            low,
            high,
        } in parts
        {
            let room = u128::from(high.saturating_sub(low));
            let taken = missing.min(room * u128::from(count));
            missing -= taken;
            let full = taken.checked_div(room).unwrap_or(0) as u64;
            let rest = taken.checked_rem(room).unwrap_or(0) as u64;
            runs.push((bucket, high, full));
            let partial = u64::from(full < count);
            runs.push((bucket, low + rest, partial));
            runs.push((bucket, low, count - full - partial));
        }
        runs
    }

    fn plan_f64(&self, sum: f64, ends: Option<(f64, f64)>) -> Vec<(usize, f64, u64)> {
        let bounds = |bucket: usize| {
            let (low, high) = self.state.bucket_range(bucket);
            if self.state.is_zero_bucket(bucket) {
                return (0.0, 0.0);
            }
            (low.next_up(), high)
        };
        let (parts, mut runs) = self.parts(ends, bounds, f64::max, f64::min);
        // Where a bucket is open and its end was replayed before, its bound must do.
        let close = |part: &Part<f64>| {
            (
                if part.low.is_finite() {
                    part.low
                } else {
                    part.high
                },
                if part.high.is_finite() {
                    part.high
                } else {
                    part.low
                },
            )
        };
        let fixed: f64 = runs
            .iter()
            .map(|(_, value, times)| value * *times as f64)
            .sum();
        let least: f64 = parts
            .iter()
            .map(|part| close(part).0 * part.count as f64)
            .sum();
        let room: f64 = parts
            .iter()
            .map(|part| (close(part).1 - close(part).0) * part.count as f64)
            .sum();
        let share = ((sum - fixed - least) / room).clamp(0.0, 1.0);
        let share = if share.is_finite() { share } else { 0.0 };
        for part in parts {
            let (low, high) = close(&part);
            runs.push((
                part.bucket,
                (low + share * (high - low)).clamp(low, high),
                part.count,
            ));
        }
        runs
    }

    /// What is free to choose, and the values that are known, which come first.
    #[expect(
        clippy::type_complexity,
        reason = "two lists, used at once by the two callers"
    )]
    fn parts<T: Copy + PartialOrd>(
        &self,
        ends: Option<(T, T)>,
        bounds: impl Fn(usize) -> (T, T),
        max: impl Fn(T, T) -> T,
        min: impl Fn(T, T) -> T,
    ) -> (Vec<Part<T>>, Vec<(usize, T, u64)>) {
        let mut parts: Vec<Part<T>> = Vec::new();
        for bucket in self.state.ascending_cells() {
            let count = self.counts.get(bucket).copied().unwrap_or(0);
            if count > 0 {
                let (low, high) = bounds(bucket);
                let (low, high) = match ends {
                    Some((least, most)) => {
                        (min(max(low, least), most), max(min(high, most), least))
                    }
                    None => (low, high),
                };
                parts.push(Part {
                    bucket,
                    count,
                    low,
                    high,
                });
            }
        }
        let mut fixed = Vec::new();
        if let Some((least, most)) = ends {
            if let Some(first) = parts.first_mut() {
                fixed.push((first.bucket, least, 1));
                first.count -= 1;
            }
            if let Some(last) = parts
                .last_mut()
                .filter(|last| last.count > 0 && (self.count > 1))
            {
                fixed.push((last.bucket, most, 1));
                last.count -= 1;
            }
        }
        parts.retain(|part| part.count > 0);
        (parts, fixed)
    }
}

/// One value of either type.
pub(super) enum Number {
    U64(u64),
    F64(f64),
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self::U64(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::F64(value)
    }
}

impl Number {
    fn taken_from(self, sum: Value, times: u64) -> Value {
        match (self, sum) {
            (Self::U64(value), Value::U64(sum)) => {
                Value::U64(sum.wrapping_sub(value.wrapping_mul(times)))
            }
            (Self::F64(value), Value::F64(sum)) => Value::F64(sum - value * times as f64),
            (_, sum) => sum,
        }
    }
}
