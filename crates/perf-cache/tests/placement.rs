//! The index against a list of nodes that is looked through from front to end.

use perf_atomics::Membership;
use perf_cache::{
    AVOID_MAX, CacheError, Label, NodeCapacity, PlacementDecisionCache, PlacementIndex,
    REQUIRE_MAX, Requirements, ResourceSummary, ResourceSummaryCache, Strategy as Choice, Unfit,
};
use proptest::prelude::*;
use std::time::Duration;

/// What anybody would write first.
#[derive(Default)]
struct Naive {
    nodes: Vec<Option<(NodeCapacity, Vec<Label>)>>,
    holes: Vec<usize>,
    next: usize,
}

fn points(node: &NodeCapacity) -> i64 {
    let points =
        i64::from(node.vcpus) * 64 + i64::from(node.memory_mib) / 64 + i64::from(node.disk_gib);
    points.min(i64::from(i32::MAX) - 1)
}

impl Naive {
    fn place(&mut self, id: u64) -> Option<usize> {
        self.nodes
            .iter()
            .position(|node| node.as_ref().is_some_and(|(node, _)| node.id == id))
    }

    fn update(&mut self, node: NodeCapacity) {
        if let Some(place) = self.place(node.id) {
            self.nodes[place].as_mut().unwrap().0 = node;
        } else if let Some(hole) = self.holes.pop() {
            self.nodes[hole] = Some((node, Vec::new()));
        } else {
            self.nodes.push(Some((node, Vec::new())));
        }
    }

    fn remove(&mut self, id: u64) -> bool {
        let place = self.place(id);
        if let Some(place) = place {
            self.nodes[place] = None;
            self.holes.push(place);
        }
        place.is_some()
    }

    fn fits(&self, place: usize, vm: &Requirements) -> bool {
        self.nodes[place].as_ref().is_some_and(|(node, labels)| {
            node.vcpus >= vm.vcpus
                && node.memory_mib >= vm.memory_mib
                && node.disk_gib >= vm.disk_gib
                && !vm.avoided().any(|label| labels.contains(&label))
                && vm.required().all(|label| labels.contains(&label))
        })
    }

    fn id(&self, place: usize) -> u64 {
        self.nodes[place].as_ref().unwrap().0.id
    }

    fn select(&mut self, vm: &Requirements, choice: Choice) -> Option<u64> {
        let fitting: Vec<usize> = (0..self.nodes.len())
            .filter(|place| self.fits(*place, vm))
            .collect();
        let rank = |place: &usize| points(&self.nodes[*place].as_ref().unwrap().0);
        let best = match choice {
            // The first of the greatest: `max_by_key` gives the last.
            Choice::MostAvailable => fitting
                .iter()
                .rev()
                .max_by_key(|place| rank(place))
                .copied(),
            Choice::LeastAvailable => fitting.iter().min_by_key(|place| rank(place)).copied(),
            _ => {
                let next = self.next;
                let chosen = fitting
                    .iter()
                    .find(|place| **place >= next)
                    .or_else(|| fitting.first())
                    .copied();
                if let Some(chosen) = chosen {
                    self.next = chosen + 1;
                }
                chosen
            }
        }?;
        Some(self.id(best))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Update(NodeCapacity),
    Remove(u64),
    Label(u64, usize),
    Unlabel(u64, usize),
    Select(u32, u32, u32, Vec<usize>, Vec<usize>, Choice),
    Place(u32, u32, u32, Choice),
}

fn amount(most: u32) -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..most, 1 => Just(0), 1 => Just(i32::MAX as u32)]
}

fn step() -> impl Strategy<Value = Step> {
    let node = (0..300u64, amount(64), amount(262_144), amount(4096)).prop_map(
        |(id, vcpus, memory_mib, disk_gib)| NodeCapacity {
            id,
            vcpus,
            memory_mib,
            disk_gib,
        },
    );
    let choice = prop_oneof![
        Just(Choice::MostAvailable),
        Just(Choice::LeastAvailable),
        Just(Choice::RoundRobin)
    ];
    prop_oneof![
        10 => node.prop_map(Step::Update),
        1 => (0..300u64).prop_map(Step::Remove),
        3 => (0..300u64, 0..6usize).prop_map(|(id, label)| Step::Label(id, label)),
        1 => (0..300u64, 0..6usize).prop_map(|(id, label)| Step::Unlabel(id, label)),
        4 => (amount(64), amount(262_144), amount(4096), prop::collection::vec(0..6usize, 0..4), prop::collection::vec(0..6usize, 0..2), choice.clone())
            .prop_map(|(v, m, d, avoid, require, choice)| Step::Select(v, m, d, avoid, require, choice)),
        2 => (0..16u32, 0..65_536u32, 0..512u32, choice).prop_map(|(v, m, d, choice)| Step::Place(v, m, d, choice)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_index_answers_like_a_list(steps in prop::collection::vec(step(), 1..600)) {
        let (mut index, mut naive) = (PlacementIndex::new(), Naive::default());
        let labels: Vec<Label> =
            (0..6).map(|label| index.label(&format!("label {label}")).unwrap()).collect();
        for step in steps {
            match step {
                Step::Update(node) => {
                    index.update(node).unwrap();
                    naive.update(node);
                    prop_assert_eq!(index.get(node.id), Some(node));
                }
                Step::Remove(id) => prop_assert_eq!(index.remove(id), naive.remove(id)),
                Step::Label(id, label) => {
                    let place = naive.place(id);
                    prop_assert_eq!(index.add_label(id, labels[label]), place.is_some());
                    if let Some(place) = place {
                        naive.nodes[place].as_mut().unwrap().1.push(labels[label]);
                    }
                }
                Step::Unlabel(id, label) => {
                    let held = naive.place(id).and_then(|place| {
                        let held = &mut naive.nodes[place].as_mut().unwrap().1;
                        held.iter().position(|held| *held == labels[label]).map(|at| held.swap_remove(at))
                    });
                    prop_assert_eq!(index.remove_label(id, labels[label]), held.is_some());
                }
                Step::Select(vcpus, memory, disk, avoid, require, choice) => {
                    let avoid: Vec<Label> = avoid.into_iter().map(|label| labels[label]).collect();
                    let require: Vec<Label> = require.into_iter().map(|label| labels[label]).collect();
                    let vm = Requirements::new(vcpus, memory, disk).avoiding(&avoid).unwrap();
                    let vm = vm.requiring(&require).unwrap();
                    for place in 0..naive.nodes.len() {
                        let Some((node, held)) = &naive.nodes[place] else { continue };
                        let answer = index.explain(node.id, &vm);
                        prop_assert_eq!(answer.is_ok(), naive.fits(place, &vm));
                        let is_right = match answer {
                            Ok(score) => i64::from(score) == points(node),
                            Err(Unfit::Vcpus) => node.vcpus < vcpus,
                            Err(Unfit::Memory) => node.memory_mib < memory,
                            Err(Unfit::Disk) => node.disk_gib < disk,
                            Err(Unfit::Avoided(label)) => avoid.contains(&label) && held.contains(&label),
                            Err(Unfit::Missing(label)) => require.contains(&label) && !held.contains(&label),
                            Err(_) => false,
                        };
                        prop_assert!(is_right, "{answer:?}");
                    }
                    if choice != Choice::RoundRobin {
                        prop_assert_eq!(index.scan(&vm, choice), naive.select(&vm, choice));
                    }
                    prop_assert_eq!(index.select(&vm, choice), naive.select(&vm, choice));
                    let expected: Vec<u64> = (0..naive.nodes.len())
                        .filter(|place| naive.fits(*place, &vm))
                        .map(|place| naive.id(place))
                        .collect();
                    let mut fitting = Vec::new();
                    index.for_each_fitting(&vm, |id| fitting.push(id));
                    prop_assert_eq!(index.count_fitting(&vm), expected.len());
                    prop_assert_eq!(fitting, expected);
                }
                Step::Place(vcpus, memory, disk, choice) => {
                    let vm = Requirements::new(vcpus, memory, disk);
                    let node = index.select(&vm, choice);
                    prop_assert_eq!(node, naive.select(&vm, choice));
                    if let Some(node) = node {
                        let before = index.get(node);
                        prop_assert!(index.reserve(node, &vm));
                        prop_assert!(index.release(node, &vm));
                        prop_assert_eq!(index.get(node), before);
                        prop_assert!(index.reserve(node, &vm));
                        let place = naive.place(node).unwrap();
                        let held = &mut naive.nodes[place].as_mut().unwrap().0;
                        held.vcpus -= vcpus;
                        held.memory_mib -= memory;
                        held.disk_gib -= disk;
                    }
                }
            }
            let alive = naive.nodes.iter().flatten().count();
            prop_assert_eq!((index.len(), index.is_empty()), (alive, alive == 0));
        }
    }
}

#[test]
fn what_is_not_there_is_said_so() {
    let mut index = PlacementIndex::new();
    let vm = Requirements::new(1, 1, 1);
    for choice in [
        Choice::MostAvailable,
        Choice::LeastAvailable,
        Choice::RoundRobin,
    ] {
        assert_eq!(index.select(&vm, choice), None);
        assert_eq!(index.scan(&vm, choice), None);
    }
    assert!(!index.remove(1) && !index.reserve(1, &vm) && !index.release(1, &vm));
    assert_eq!(index.get(1), None);
    let label = index.label("a").unwrap();
    assert!(!index.add_label(1, label) && !index.remove_label(1, label));
    index
        .update(NodeCapacity {
            id: 1,
            vcpus: u32::MAX,
            memory_mib: u32::MAX,
            disk_gib: u32::MAX,
        })
        .unwrap();
    assert_eq!(
        index.select(
            &Requirements::new(u32::MAX, u32::MAX, u32::MAX),
            Choice::LeastAvailable
        ),
        Some(1)
    );
    index
        .update(NodeCapacity {
            id: 1,
            vcpus: 1,
            memory_mib: 1,
            disk_gib: 0,
        })
        .unwrap();
    assert!(!index.reserve(1, &vm));
    assert!(index.release(1, &vm) && index.reserve(1, &vm));
    let other = (1..=perf_cache::LABELS_MAX)
        .map(|label| index.label(&label.to_string()))
        .last();
    assert!(matches!(
        other,
        Some(Err(CacheError::TooManyLabels {
            labels_max: perf_cache::LABELS_MAX
        }))
    ));
    assert!(vm.avoiding(&[label; AVOID_MAX + 1]).is_err());
    assert!(vm.requiring(&[label; REQUIRE_MAX + 1]).is_err());
    assert_eq!(index.explain(7, &vm), Err(Unfit::Unknown));
}

#[test]
fn a_decision_holds_for_its_generation() {
    let members: Membership<u64, ()> = Membership::new();
    let decisions = PlacementDecisionCache::new(100, Duration::from_secs(3600)).unwrap();
    let vm = Requirements::new(1, 1, 1);
    let choice = Choice::MostAvailable;
    let place = |answer| decisions.place(&vm, choice, &members, || answer);
    assert_eq!((place(Some(1)), place(Some(2))), (Some(1), Some(1)));
    members.insert(9, ());
    assert_eq!((place(Some(2)), place(None)), (Some(2), Some(2)));
    assert!(decisions.forget(&vm, choice, members.generation()));
    assert_eq!((place(None), place(Some(4))), (None, None));
    assert_eq!(decisions.forget_node(1), 1);
    assert_eq!(
        decisions.place_at(&vm, Choice::LeastAvailable, 1, || Some(7)),
        Some(7)
    );
    assert_eq!(decisions.stats().computations, 4);
    decisions.clear();
    assert_eq!(place(Some(5)), Some(5));
}

#[tokio::test]
async fn a_task_decides_once_and_may_wait_for_it() {
    let members: Membership<u64, ()> = Membership::new();
    let decisions = PlacementDecisionCache::new(100, Duration::from_secs(3600)).unwrap();
    let (vm, choice) = (Requirements::new(1, 1, 1), Choice::MostAvailable);
    let place = |answer| {
        decisions.place_async(&vm, choice, &members, move || async move {
            tokio::task::yield_now().await;
            answer
        })
    };
    let (first, second) = tokio::join!(place(Some(1)), place(Some(2)));
    assert_eq!((first, second), (Some(1), Some(1)));
    assert_eq!(decisions.place(&vm, choice, &members, || Some(3)), Some(1));
    members.insert(9, ());
    assert_eq!(place(Some(4)).await, Some(4));
    assert_eq!(decisions.stats().computations, 2);
}

#[test]
fn a_summary_is_computed_in_the_background_when_it_is_stale() {
    let cache = ResourceSummaryCache::refreshed_by(Duration::from_millis(1), || {
        Some(ResourceSummary {
            nodes: 2,
            ..Default::default()
        })
    })
    .unwrap();
    // Ends when the background has computed; if it never did, the test would hang and not pass.
    while cache
        .get_or_compute(|| ResourceSummary {
            nodes: 1,
            ..Default::default()
        })
        .nodes
        == 1
    {
        std::thread::yield_now();
    }
    assert!(ResourceSummaryCache::new(Duration::ZERO).is_err());
}
